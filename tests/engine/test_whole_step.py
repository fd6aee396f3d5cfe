"""A decoder's forward pass as one call gives the bits of its operations called one by one, in every family."""

import pytest

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve_kernels.cpu import backend, library
from support.checkpoints import FAMILIES, SIZES, make_checkpoint
from support.engine_runs import Answers, make_request, run

pytestmark = pytest.mark.skipif(not library.runs_here(), reason="the C++ kernels are not built")


def answers(checkpoint, **config) -> Answers:
    """Of prompts that come in chunks beside sequences that decode."""
    engine = Engine.from_config(
        EngineConfig(model=str(checkpoint), threads=1, max_num_batched_tokens=37, block_size=8, **config)
    )
    requests = [
        make_request(f"r{n}", [(7 * i) % SIZES.vocab_size for i in range(length)] + [n], seed=n,
                     max_tokens=9, ignore_eos=True, logprobs=1, prompt_logprobs=0)
        for n, length in enumerate((1, 9, 40, 70))
    ]  # fmt: skip
    return run(engine, requests)


@pytest.mark.parametrize("config", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_and_many_give_the_same_bits(family, config, tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, family)
    whole = answers(checkpoint, **config)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "decoder_step", None)
        one_by_one = answers(checkpoint, **config)
    assert {key: answer.bits for key, answer in whole.items()} == {key: x.bits for key, x in one_by_one.items()}
