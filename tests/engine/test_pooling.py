"""Embeddings are the decoder's own final states, pooled, and their bits depend on the prompt alone."""

import pytest
import torch

from polyserve.engine.engine import Engine
from polyserve.model.forward_context import PackedContext
from polyserve.request import pooling_request
from support.engine_runs import make_engine, make_request
from support.tiny_decoder import VOCAB_SIZE, tiny_decoder

PROMPTS = [
    [(7 * i + start) % VOCAB_SIZE for i in range(length)] for start, length in enumerate((1, 5, 40, 130, 131, 200))
]
POOLINGS = ["last", "mean"]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def embed(engine: Engine, pooling: str, *, company: int = 0) -> list[list[float]]:
    """The vectors of all prompts, beside some requests that generate."""
    for number in range(company):
        engine.add(make_request(f"s{number}", [number + 1] * (3 * number + 1), max_tokens=20 + number))
    for number, prompt in enumerate(PROMPTS):
        engine.add(pooling_request(f"e{number}", prompt, pooling))
    found = {}
    while engine.has_work():
        for output in engine.step():
            if output.request_id.startswith("e"):
                assert (output.finish_reason, output.token_ids) == ("length", [])
                assert output.request_id not in found
                found[output.request_id] = output.pooled
    return [found[f"e{number}"] for number in range(len(PROMPTS))]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_what_the_model_says_of_the_whole_prompt(model, pooling):
    for prompt, vector in zip(PROMPTS, embed(make_engine(model), pooling), strict=True):
        context = PackedContext(torch.tensor([0, len(prompt)], dtype=torch.int32))
        states = model(torch.tensor(prompt), torch.arange(len(prompt)), context).double()
        expected = states[-1] if pooling == "last" else states.mean(dim=0)
        assert torch.tensor(vector).double() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("config", [
    {"max_num_batched_tokens": 7, "max_num_seqs": 3},
    {"async_scheduling": True, "max_num_batched_tokens": 30},
    {"block_size": 1, "kv_cache_memory_bytes": 300 * 512},  # tokens of float32: too few for all, so some are preempted
    {"enable_prefix_caching": False},
])  # fmt: skip
def test_its_bits_do_not_depend_on_chunks_company_or_the_cache(model, pooling, config):
    alone = embed(make_engine(model, max_num_seqs=1), pooling)
    engine = make_engine(model, **config)
    assert embed(engine, pooling, company=10) == alone
    assert embed(engine, pooling) == alone  # once more: a prompt may begin with what is in the cache now
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_mean_needs_every_state_but_the_last_one_comes_from_the_cache(model):
    for pooling, num_hits in (("last", 192), ("mean", 0)):
        engine = make_engine(model)
        engine.add(make_request("first", PROMPTS[-1], max_tokens=1))
        engine.add(pooling_request("waits", PROMPTS[0], pooling))
        while engine.has_work():
            engine.step()
        engine.add(pooling_request("again", PROMPTS[-1], pooling))
        while engine.has_work():
            engine.step()
        assert engine.stats().prefix_hit_tokens == num_hits


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_that_are_not_finite_end_the_request_alone(pooling):
    model = tiny_decoder()
    with torch.no_grad():
        model.embedding.weight[9] = torch.nan
    engine = make_engine(model)
    engine.add(pooling_request("bad", [1, 2, 9], pooling))
    engine.add(pooling_request("good", [1, 2, 3], pooling))
    outputs = {output.request_id: output for output in engine.step()}
    assert outputs["good"].pooled is not None
    assert outputs["bad"].finish_reason == "error"
    assert "finite" in outputs["bad"].error
