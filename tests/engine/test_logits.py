"""A sequence's edits are what its parameters say of its tokens, grown token by token or made at once."""

import random

import pytest
import torch

from polyserve.engine.logits import TokenEdits, gather_edits
from polyserve.sampling_params import SamplingParams

V = 100
EOS_IDS = (2, 3)


def edits_of(tokens, prompt_len, **params):
    params = SamplingParams(max_tokens=None, **params)
    return TokenEdits(params, tokens, prompt_len, eos_ids=EOS_IDS, vocab_size=V)


def entries(edits):
    columns = edits.ids.tolist(), edits.repetition.tolist(), edits.bias.tolist()
    return {token_id: pytest.approx(rest) for token_id, *rest in zip(*columns, strict=True)}


@pytest.mark.parametrize("params", [
    {"repetition_penalty": 1.25},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.25},
    {"logit_bias": {5: 1.0}},
    {"allowed_token_ids": [1]},
    {"min_tokens": 1},
])  # fmt: skip
def test_each_parameter_that_edits_is_known(params):
    assert TokenEdits.needed_by(SamplingParams(**params))


def test_parameters_that_edit_nothing_need_no_edits():
    assert not TokenEdits.needed_by(SamplingParams(temperature=0.5, top_p=0.5, stop_token_ids=[4], logprobs=3))


def test_repetition_counts_prompt_and_answer():
    assert entries(edits_of([7, 8, 9], 2, repetition_penalty=1.5)) == {7: [1.5, 0], 8: [1.5, 0], 9: [1.5, 0]}


def test_frequency_and_presence_count_the_answer_alone():
    edits = edits_of([7, 8, 8, 8, 9], 2, frequency_penalty=0.5, presence_penalty=0.25)
    assert entries(edits) == {8: [1, -1.25], 9: [1, -0.75]}


def test_a_bias_is_added_to_penalties_and_is_not_repetition():
    edits = edits_of([7, 7], 1, frequency_penalty=0.5, repetition_penalty=2.0, logit_bias={7: 3.0, 9: -4.0})
    assert entries(edits) == {7: [2, 2.5], 9: [1, -4]}


def test_stop_tokens_are_impossible_until_there_are_min_tokens():
    edits = edits_of([7], 1, min_tokens=2, stop_token_ids=[50], logit_bias={50: 2.0})
    banned = {2: [1, -torch.inf], 3: [1, -torch.inf], 50: [1, -torch.inf]}
    assert entries(edits) == banned
    edits.append(9)
    assert entries(edits) == banned
    edits.append(9)
    assert entries(edits) == {2: [1, 0], 3: [1, 0], 50: [1, 2]}


def test_an_end_of_sequence_that_is_ignored_is_possible_before_min_tokens():
    assert entries(edits_of([7], 1, min_tokens=2, ignore_eos=True, stop_token_ids=[50])) == {50: [1, -torch.inf]}


def test_growing_token_by_token_gives_the_bits_of_making_it_at_once():
    rng = random.Random(0)
    for _ in range(30):
        params = {
            "repetition_penalty": rng.choice([1.0, 1.3]), "frequency_penalty": rng.choice([0.0, 0.7]),
            "presence_penalty": rng.choice([0.0, -0.3]), "min_tokens": rng.choice([0, 5, 30]),
            "logit_bias": {rng.randrange(V): rng.uniform(-9, 9) for _ in range(3)},
        }  # fmt: skip
        tokens = [rng.randrange(V) for _ in range(60)]
        grown = edits_of(tokens[:10], 10, **params)
        for token_id in tokens[10:]:
            grown.append(token_id)
        made = edits_of(tokens, 10, **params)
        assert _exact(made).items() <= _exact(grown).items()  # what grew may keep entries that change nothing
        assert all(rest == (1, 0) for key, rest in _exact(grown).items() if key not in _exact(made))


def test_allowed_tokens_are_bits():
    edits = gather_edits([None, edits_of([1], 1, allowed_token_ids=[0, 31, 33, 99])], vocab_size=V)
    words = edits.allowed.tolist()
    assert words[0] == [-1] * 4  # a row without the parameter allows everything
    allowed = [v for v in range(128) if words[1][v // 32] >> (v % 32) & 1]
    assert allowed == [0, 31, 33, 99]


def test_the_rows_of_a_batch_keep_their_own_edits():
    edits = gather_edits(
        [edits_of([1], 1, logit_bias={4: 1.0}), None, edits_of([1, 6], 1, frequency_penalty=1.0)], vocab_size=V
    )
    assert (edits.rows.tolist(), edits.ids.tolist(), edits.bias.tolist()) == ([0, 2], [4, 6], [1.0, -1.0])
    assert edits.allowed is None


def test_a_batch_without_edits_has_none():
    assert gather_edits([None, None], vocab_size=V) is None


def _exact(edits):
    return {t: (r, b) for t, r, b in zip(edits.ids, edits.repetition, edits.bias, strict=True)}
