"""Every family's checkpoint runs in the engine, and company does not change its bits, whatever its attention is."""

import pytest
import torch

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.request import Request
from support.checkpoints import FAMILIES, SIZES, make_checkpoint
from support.engine_runs import Answers, make_request, run


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def load(checkpoint, **config) -> Engine:
    return Engine.from_config(EngineConfig(model=str(checkpoint), threads=1, **config))


def requests() -> list[Request]:
    kinds = [{"temperature": 0.0}, {"top_p": 0.9}, {}]
    return [
        make_request(f"r{n}", [(7 * i) % SIZES.vocab_size for i in range(length)] + [n], seed=n,
                     max_tokens=14, ignore_eos=True, logprobs=1, prompt_logprobs=0, **kinds[n % 3])
        for n, length in enumerate((1, 9, 40, 70, 100, 113))
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_family_gives_the_same_bits_alone_and_in_chunks_beside_others(checkpoint, dtype):
    alone: Answers = {}
    for request in requests():
        alone |= run(load(checkpoint, dtype=dtype, enable_prefix_caching=False), [request])
    engine = load(checkpoint, dtype=dtype, max_num_batched_tokens=37, block_size=4)
    together = run(engine, requests()[::-1])
    assert {key: answer.bits for key, answer in together.items()} == {key: answer.bits for key, answer in alone.items()}


def test_a_loaded_engine_has_what_its_configuration_says(checkpoint):
    engine = load(checkpoint, max_model_len=50, dtype="float16")
    assert (engine.vocab_size, engine.max_model_len) == (SIZES.vocab_size, 50)
    assert engine.numerics_id.endswith("-float16")
    assert torch.get_num_threads() == 1
