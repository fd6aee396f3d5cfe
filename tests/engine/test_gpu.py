"""What only a GPU can show of the engine: the same tokens as a CPU, and one answer alone, in company and by graph."""

from pathlib import Path

import pytest
import torch

from polyserve import LLM, SamplingParams
from polyserve.config import EngineConfig
from support.checkpoints import FAMILIES, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

PROMPTS = [[(7 * i + n) % 500 for i in range(1 + 9 * n)] for n in range(8)]
MAX_TOKENS = 16


def answers(folder: Path, prompts: list[list[int]], **settings: object) -> list[tuple[list[int], list[float]]]:
    """Token ids and their log-probabilities."""
    llm = LLM(config=EngineConfig(model=str(folder), kv_cache_memory_bytes=2**24, **settings))
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
    found = []
    for answer in llm.generate(prompts, params, use_tqdm=False):
        output = answer.outputs[0]
        assert output.logprobs is not None
        chosen = [entry.logprob for entry in output.logprobs]
        found.append((list(output.token_ids), chosen))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_the_tokens_that_a_cpu_gives(family, tmp_path):
    folder = make_checkpoint(tmp_path, family)
    on_gpu = answers(folder, PROMPTS, device="cuda", dtype="float32")
    on_cpu = answers(folder, PROMPTS, device="cpu", backend="reference", dtype="float32")
    assert [tokens for tokens, _ in on_gpu] == [tokens for tokens, _ in on_cpu]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_gives_the_bits_of_separate_launches(family, tmp_path):
    folder = make_checkpoint(tmp_path, family)
    graphs, eager = (answers(folder, PROMPTS, device="cuda", enforce_eager=eager) for eager in (False, True))
    assert graphs == eager


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_alone_gets_the_bits_that_it_gets_in_company(family, tmp_path):
    folder = make_checkpoint(tmp_path, family)
    together = answers(folder, PROMPTS, device="cuda", max_num_batched_tokens=32)
    alone = [answers(folder, [prompt], device="cuda")[0] for prompt in PROMPTS[:3]]
    assert alone == together[:3]
