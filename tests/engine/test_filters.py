"""Filters leave what transformers' own filters leave, and a draw has the probabilities they say."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from polyserve.engine.filters import Filters, draw
from polyserve.sampling_params import SamplingParams

V = 400
PARAMS = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 250, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.1},
    {"top_k": 100, "typical_p": 0.7},
    {"top_p": 0.9, "typical_p": 0.9},
    {"top_k": 200, "top_p": 0.99, "min_p": 0.001, "typical_p": 0.8},
]


def random_logits(seed: int, spread: float) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * spread


def sorted_row(logits):
    values, ids = torch.sort(logits, descending=True, stable=True)
    return values[None].numpy(), torch.logsumexp(logits, 0)[None].numpy(), ids.numpy()


def drawn_by(logits, params, uniforms, width=V):
    """The ids that uniform numbers draw, from the `width` most likely tokens; and whether these were enough."""
    values, lse, ids = sorted_row(logits)
    n = len(uniforms)
    filters = Filters.of([SamplingParams(**params)] * n, vocab_size=V)
    index, certain = draw(values[:, :width].repeat(n, 0), lse.repeat(n), filters, np.asarray(uniforms), vocab_size=V)
    return ids[index], certain


def kept_by_transformers(logits, params):
    """Probabilities after transformers' filters, in the order in which ours apply."""
    warpers = LogitsProcessorList()
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        warpers.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        warpers.append(MinPLogitsWarper(params["min_p"]))
    if "typical_p" in params:
        warpers.append(TypicalLogitsWarper(params["typical_p"]))
    return warpers(None, logits[None].double())[0].softmax(-1).numpy()


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_the_middle_of_each_share_that_transformers_gives_draws_the_token_that_has_it(params, spread):
    logits = random_logits(3, spread)
    probabilities = kept_by_transformers(logits, params)
    order = sorted_row(logits)[2]
    order = order[probabilities[order] > 0]
    shares = probabilities[order]
    ids, certain = drawn_by(logits, params, np.cumsum(shares) - shares / 2)
    assert certain.all()
    assert (ids == order).all()


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_the_first_tokens_give_the_same_draw_as_all_of_them_wherever_they_say_that_they_are_enough(params):
    rng, num_certain = np.random.default_rng(0), 0
    for seed in range(60):
        logits, uniforms = random_logits(seed, rng.uniform(0.1, 8.0)), rng.uniform(size=20)
        few, certain = drawn_by(logits, params, uniforms, width=64)
        every, _ = drawn_by(logits, params, uniforms)
        assert (few == every)[certain].all()
        num_certain += certain.sum()
    unbounded = {"typical_p"} == set(params) or params.get("top_k", 0) > 64
    assert (num_certain == 0) if unbounded else (num_certain > 100)


@pytest.mark.parametrize(("params", "width", "enough"), [
    ({"top_k": 4}, 4, True),
    ({"top_k": 5}, 4, False),
    ({"top_p": 0.39}, 4, True),
    ({"top_p": 0.41}, 4, False),
    ({"top_k": 9, "top_p": 0.1}, 4, False),  # what top-k leaves is not all known
    ({"top_k": 9, "min_p": 1.0}, 4, False),  # a tie may go on
    ({"typical_p": 0.1}, 4, False),
    ({"typical_p": 0.1, "top_k": 4}, 4, True),
    ({"typical_p": 0.1}, V, True),
])  # fmt: skip
def test_tokens_are_enough_only_where_no_other_could_be_kept(params, width, enough):
    logits = torch.full((V,), -torch.inf)
    logits[:10] = 0.0  # ten tokens of probability a tenth
    assert drawn_by(logits, params, [0.5], width=width)[1].tolist() == [enough]


def test_rows_with_different_filters_do_not_disturb_each_other():
    logits = [random_logits(seed, 2.0) for seed in range(len(PARAMS))]
    rows = [sorted_row(row) for row in logits]
    filters = Filters.of([SamplingParams(**params) for params in PARAMS], vocab_size=V)
    uniforms = np.linspace(0.1, 0.9, len(PARAMS))
    values, lse = np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])
    together, _ = draw(values, lse, filters, uniforms, vocab_size=V)
    for i, params in enumerate(PARAMS):
        alone, _ = drawn_by(logits[i], params, uniforms[i : i + 1])
        assert rows[i][2][together[i]] == alone[0]


def test_equal_tokens_at_the_border_are_kept_in_the_order_of_their_ids():
    logits = torch.zeros(V)
    ids, _ = drawn_by(logits, {"top_k": 3}, np.linspace(0.01, 0.99, 50))
    assert set(ids.tolist()) == {0, 1, 2}


def test_a_token_that_is_impossible_is_never_drawn():
    logits = torch.full((V,), -torch.inf)
    logits[[3, 350]] = 1.0
    for params in ({"top_k": 100}, {"min_p": 0.0, "top_k": V}, {"top_p": 0.999}, {"typical_p": 0.999}):
        ids, _ = drawn_by(logits, params, np.linspace(1e-7, 1 - 1e-7, 100))
        assert set(ids.tolist()) == {3, 350}
