"""The Triton kernels serve every family: the tokens of the reference, in this process and from a server.

They are interpreted on the CPU, so models and answers are tiny. Prompts are computed in chunks, beside each other.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from polyserve import LLM, SamplingParams
from polyserve.config import EngineConfig
from polyserve_kernels import dispatch
from support.checkpoints import FAMILIES, Sizes, make_checkpoint
from support.served_model import served

SIZES = Sizes(num_layers=2)
PROMPTS = [[7, 130, 20, 300, 41], [(11 * i) % 500 for i in range(21)], [3]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=5, max_tokens=4, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.8, top_k=30, repetition_penalty=1.2, seed=6, max_tokens=4, ignore_eos=True),
]
TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def _backend_is_put_back() -> Iterator[None]:
    with dispatch.use_backend(None):
        yield


def answers(model: Path, backend: str, **options: object) -> list[list[int]]:
    config = EngineConfig(dtype="float32", threads=1, backend=backend, max_num_batched_tokens=16, **options)
    outputs = LLM(str(model), config=config).generate(PROMPTS, PARAMS)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_reference(family, tmp_path):
    model = make_checkpoint(tmp_path, family, sizes=SIZES)
    assert answers(model, "triton") == answers(model, "reference")


@pytest.mark.parametrize("cache_dtype", ["int8", "fp8"])
def test_tokens_are_those_of_the_reference_from_a_cache_with_scales(cache_dtype, tmp_path):
    model = make_checkpoint(tmp_path, "llama", sizes=SIZES)
    theirs = answers(model, "reference", kv_cache_dtype=cache_dtype)
    assert answers(model, "triton", kv_cache_dtype=cache_dtype) == theirs


def test_a_server_answers_with_the_tokens_of_the_reference(tmp_path, monkeypatch):
    model = make_checkpoint(tmp_path, "llama", sizes=SIZES)
    expected = answers(model, "reference")
    monkeypatch.setenv("POLYSERVE_BACKEND", "triton")
    with served(model, "--dtype", "float32", "--threads", "1") as server:
        for prompt, params, token_ids in zip(PROMPTS, PARAMS, expected, strict=True):
            fields = ("temperature", "seed", "top_p", "top_k", "repetition_penalty", "max_tokens", "ignore_eos")
            asked = {name: getattr(params, name) for name in fields}
            body = {"model": str(model), "prompt": prompt, "return_token_ids": True, **asked}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=TIMEOUT_S).raise_for_status().json()
            assert answer["system_fingerprint"].startswith("triton-")
            assert answer["choices"][0]["token_ids"] == token_ids
