"""Admission: what no model of a vocabulary and a length can serve is refused, and a missing seed is drawn."""

import pytest

from polyserve.errors import InvalidRequest
from polyserve.request import admit, check_request, draw_seed
from polyserve.sampling_params import MAX_SEED, SamplingParams


@pytest.mark.parametrize(
    ("prompt_ids", "params", "message", "param"),
    [
        ([], {}, "the prompt must have at least one token, got none", "prompt"),
        ([1, 256, -1], {}, "the prompt holds token id 256; this model's ids are 0 to 255", "prompt"),
        ([-1], {}, "the prompt holds token id -1; this model's ids are 0 to 255", "prompt"),
        (
            [1] * 1003,
            {},
            "has 1003 tokens and needs 1 more for its answer; this model takes 1000: 4 too many",
            "prompt",
        ),
        ([1] * 998, {"min_tokens": 4}, "needs 4 more for its answer; this model takes 1000: 2 too many", "prompt"),
        ([1] * 1001, {"max_tokens": 0}, "has 1001 tokens; this model takes 1000: 1 too many", "prompt"),
        ([1], {"logprobs": 6}, "logprobs must be at most 5, got 6", "logprobs"),
        ([1], {"stop_token_ids": [256]}, "stop_token_ids holds token id 256", "stop_token_ids"),
        ([1], {"logit_bias": {300: 1.0}}, "logit_bias holds token id 300", "logit_bias"),
        ([1], {"allowed_token_ids": [300]}, "allowed_token_ids holds token id 300", "allowed_token_ids"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_by_name_and_number(
    prompt_ids: list[int], params: dict[str, object], message: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_request(
            prompt_ids,
            SamplingParams(**params),  # type: ignore[arg-type]
            vocab_size=256,
            max_model_len=1000,
            max_logprobs=5,
        )
    assert message in refusal.value.message
    assert refusal.value.param == param


@pytest.mark.parametrize(("prompt_len", "max_tokens"), [(999, 16), (999, None), (1000, 0)])
def test_a_prompt_may_be_as_long_as_the_model_less_its_answers_first_token(
    prompt_len: int, max_tokens: int | None
) -> None:
    params = SamplingParams(max_tokens=max_tokens)
    check_request([0] * prompt_len, params, vocab_size=256, max_model_len=1000, max_logprobs=5)


def test_a_missing_seed_is_drawn_and_a_given_one_kept() -> None:
    drawn = [admit("r", [1], SamplingParams()).params.seed for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert admit("r", [1], SamplingParams(seed=0)).params.seed == 0


def test_a_drawn_seed_is_one_that_a_client_may_give() -> None:
    assert all(0 <= draw_seed() <= MAX_SEED for _ in range(100))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 10**30, "max_tokens must be at least 0 and at most 2147483647"),
        ("top_k", 5.0, "top_k must be a whole number, got 5.0"),
        ("n", True, "n must be a whole number, got True"),
        ("seed", 2**63, "seed must be at least"),
        ("stop", "word", "stop must be a list of strings, got 'word'"),
        ("stop", ["\ud800"], "half of a surrogate pair"),
    ],
)
def test_sampling_parameters_that_no_message_could_carry_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.param == field
