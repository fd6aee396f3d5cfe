"""The sampler draws from the distribution that the parameters describe, as a pure function of each row.

The head is an identity matrix here, so the hidden states are the logits.
"""

import math

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper, TypicalLogitsWarper

from polyserve.engine import sampler as sampler_module
from polyserve.engine.logits import TokenEdits
from polyserve.engine.sampler import NONE_ALLOWED, NOT_FINITE, Sampler, SampleRow
from polyserve.sampling_params import SamplingParams

V = 320
EOS = 2


def random_logits(num_rows, seed=0, spread=2.0):
    return torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed)) * spread


def make_row(*, choice=0, position=5, tokens=(), prompt_len=0, **params):
    params = SamplingParams(**{"seed": 0, "max_tokens": None} | params)
    edits = None
    if TokenEdits.needed_by(params):
        edits = TokenEdits(params, list(tokens), prompt_len, eos_ids=[EOS], vocab_size=V)
    return SampleRow(params, choice, position, edits)


def sample(logits, rows):
    return Sampler(torch.eye(V), soft_cap=None).sample(logits, rows)


def token_ids(logits, rows):
    return [drawn.token_id for drawn in sample(logits, rows)]


def assert_distributed(ids, probabilities):
    """Pearson's chi-squared test; tokens that are expected fewer than 5 times are counted together."""
    counts, expected = np.bincount(ids, minlength=len(probabilities)), np.asarray(probabilities) * len(ids)
    assert not counts[expected == 0].any(), "a token was drawn that is not possible"
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    # Wilson and Hilferty (1931): the cube root of chi-squared / freedom is nearly normal
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 4, f"chi-squared is {statistic:.0f} with {freedom} degrees of freedom"


def test_greedy_takes_the_likeliest_token_and_the_first_of_equals():
    logits = random_logits(3)
    logits[2] = 0.0
    rows = [make_row(temperature=0.0, top_p=0.1) for _ in range(3)]
    assert token_ids(logits, rows) == [int(logits[0].argmax()), int(logits[1].argmax()), 0]


def test_a_very_low_temperature_is_as_good_as_greedy():
    logits = random_logits(20, spread=30.0)
    rows = [make_row(temperature=1e-30, seed=seed) for seed in range(20)]
    assert token_ids(logits, rows) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_without_filters_tokens_are_drawn_from_the_whole_distribution(temperature):
    logits = random_logits(1)
    rows = [make_row(temperature=temperature, seed=seed) for seed in range(8000)]
    assert_distributed(token_ids(logits.expand(8000, V), rows), (logits[0].double() / temperature).softmax(-1))


@pytest.mark.parametrize(
    ("params", "warper"),
    [({"top_p": 0.8}, TopPLogitsWarper(0.8)), ({"typical_p": 0.7}, TypicalLogitsWarper(0.7))],
    ids=["settled on the survivors", "settled on all logits"],
)
def test_with_filters_tokens_are_drawn_from_what_these_leave(params, warper):
    logits = random_logits(1)
    rows = [make_row(temperature=1.2, position=position, **params) for position in range(2500)]
    left = warper(None, logits.double() / 1.2)[0].softmax(-1)
    assert_distributed(token_ids(logits.expand(2500, V), rows), left)


def test_penalties_biases_and_allowed_tokens_change_the_distribution_before_temperature():
    logits = random_logits(1)[0]
    tokens = [3, 3, 4, 5, 5, 5, 6]  # three of the prompt, four of the answer
    allowed = [*range(0, V, 2), 3, 5]
    row = {
        "tokens": tokens, "prompt_len": 3, "temperature": 0.8, "repetition_penalty": 1.5, "frequency_penalty": 0.3,
        "presence_penalty": 0.4, "logit_bias": {5: 3.0, 8: -100.0}, "allowed_token_ids": allowed, "min_tokens": 9,
    }  # fmt: skip
    expected = logits.double()
    for token_id in (3, 4, 5, 6):
        expected[token_id] = expected[token_id] / 1.5 if expected[token_id] > 0 else expected[token_id] * 1.5
    expected[5] += -0.3 * 3 - 0.4 + 3.0
    expected[6] += -0.3 * 1 - 0.4
    expected[8] -= 100.0
    expected[EOS] = -torch.inf
    expected[[i for i in range(V) if i not in allowed]] = -torch.inf
    ids = token_ids(logits.expand(6000, V), [make_row(seed=seed, **row) for seed in range(6000)])
    assert_distributed(ids, (expected / 0.8).softmax(-1))


def test_choices_positions_and_seeds_draw_independently():
    logits = random_logits(1, spread=0.0).expand(2000, V)
    by = [
        [make_row(seed=i) for i in range(2000)],
        [make_row(choice=i) for i in range(2000)],
        [make_row(position=i) for i in range(2000)],
        [make_row(seed=i, top_k=V - 1) for i in range(2000)],
    ]
    drawn = np.array([token_ids(logits, rows) for rows in by])
    for i in range(4):
        assert_distributed(drawn[i], np.full(V, 1 / V))
        for j in range(i):
            assert (drawn[i] == drawn[j]).mean() < 4 / V


def test_a_rows_token_does_not_depend_on_the_other_rows():
    kinds = [
        {"temperature": 0.0}, {}, {"temperature": 0.6}, {"top_p": 0.9}, {"top_k": 7}, {"typical_p": 0.9},
        {"min_p": 0.2}, {"logprobs": 5}, {"logit_bias": {1: 9.0}}, {"allowed_token_ids": [5, 6, 7]},
        {"top_k": 200, "top_p": 0.99},
    ]  # fmt: skip
    rows = [make_row(seed=seed, **kind) for seed, kind in enumerate(kinds * 5)]
    logits = random_logits(len(rows))
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(len(rows))]
    assert together[::-1] == sample(logits.flip(0), rows[::-1])


@pytest.mark.parametrize(("num_survivors", "num_candidates"), [(1, 2), (16, 60), (128, 150), (128, V)])
def test_survivors_give_the_token_that_all_logits_give(monkeypatch, num_survivors, num_candidates):
    rng = np.random.default_rng(0)
    rows = [
        make_row(
            seed=seed,
            temperature=rng.uniform(0.2, 2.0),
            top_p=rng.choice([1.0, 0.5, 0.95]),
            top_k=rng.choice([0, 10, 150]).item(),
            min_p=rng.choice([0.0, 0.02]),
            typical_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            tokens=[1, 2, 3],
        )
        for seed in range(300)
    ]
    logits = random_logits(300)
    monkeypatch.setattr(sampler_module, "NUM_SURVIVORS", V)
    expected = token_ids(logits, rows)
    monkeypatch.setattr(sampler_module, "NUM_SURVIVORS", num_survivors)
    monkeypatch.setattr(sampler_module, "NUM_CANDIDATES", num_candidates)
    assert token_ids(logits, rows) == expected


def test_rows_that_need_all_logits_are_taken_a_few_at_a_time(monkeypatch):
    rows, logits = [make_row(seed=seed, typical_p=0.9) for seed in range(20)], random_logits(20)
    expected, held = token_ids(logits, rows), []
    head_logits = sampler_module.ops.head_logits

    def counting(hidden, weight, **options):
        held.append(len(hidden) * len(weight))
        return head_logits(hidden, weight, **options)

    monkeypatch.setattr(sampler_module.ops, "head_logits", counting)
    monkeypatch.setattr(sampler_module, "MAX_LOGITS", 3 * V)
    assert token_ids(logits, rows) == expected
    assert max(held) == 3 * V


def test_log_probabilities_are_of_the_models_own_logits():
    logits = random_logits(4)
    rows = [
        make_row(logprobs=3, temperature=0.0, logit_bias={7: 100.0}),
        make_row(logprobs=5, temperature=0.3),
        make_row(logprobs=0, top_k=3),
        make_row(typical_p=0.5),
    ]
    drawn, expected = sample(logits, rows), logits.double().log_softmax(-1)
    assert drawn[0].token_id == 7
    assert drawn[3].logprob is None
    for i, num_top in enumerate((3, 5, 0)):
        entry, best = drawn[i].logprob, expected[i].topk(num_top)
        assert entry.token_id == drawn[i].token_id
        assert entry.logprob == pytest.approx(expected[i][entry.token_id].item(), abs=1e-5)
        assert entry.top_ids == best.indices.tolist()
        assert entry.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.7}, {"top_p": 0.6}, {"typical_p": 0.6}])
def test_a_tokens_log_probability_and_its_value_in_the_top_list_are_the_same_float(params):
    rows = [make_row(seed=seed, logprobs=V, **params) for seed in range(50)]
    for drawn in sample(random_logits(50), rows):
        entry = drawn.logprob
        assert entry.top_logprobs[entry.top_ids.index(entry.token_id)] == entry.logprob


def test_scored_tokens_have_the_floats_of_drawn_ones():
    logits = random_logits(30)
    drawn = sample(logits, [make_row(seed=seed, logprobs=4) for seed in range(30)])
    scored = Sampler(torch.eye(V), soft_cap=None).score(logits, [d.token_id for d in drawn], num_top=4)
    assert scored == [d.logprob for d in drawn]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"typical_p": 0.9}])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_fail_their_own_row(params, fault):
    rows, logits = [make_row(seed=seed, **params) for seed in range(3)], random_logits(3)
    expected = sample(logits, rows)
    logits[1, 50] = fault
    drawn = sample(logits, rows)
    assert drawn[1].error == NOT_FINITE
    assert (drawn[0], drawn[2]) == (expected[0], expected[2])


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"typical_p": 0.9}])
def test_a_row_that_may_draw_nothing_fails_alone(params):
    rows = [make_row(), make_row(allowed_token_ids=[EOS], min_tokens=1, **params)]
    drawn = sample(random_logits(2), rows)
    assert [d.error for d in drawn] == [None, NONE_ALLOWED]
