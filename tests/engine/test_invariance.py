"""A token is a pure function of its own request: tokens and bits of log-probabilities do not change with company.

32 requests of all kinds are answered one after another, each alone in an engine with room to spare and no prefix
cache. Then the same requests are answered under every circumstance that an engine knows, and the answers must be
equal, in fp32 and in bf16. Prompts and answers cross the border between two key tiles (128 tokens) and share
beginnings.
"""

from functools import cache

import pytest
import torch

from polyserve.request import Request
from support.engine_runs import Answers, make_engine, make_request, run
from support.tiny_decoder import VOCAB_SIZE, tiny_decoder

DTYPES = [torch.float32, torch.bfloat16]
KINDS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.3, "prompt_logprobs": 1},
    {"temperature": 1.0, "typical_p": 0.8, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"temperature": 2.0, "top_p": 0.98, "logit_bias": {7: 4.0, 8: -50.0}},
    {"temperature": 1.0, "min_tokens": 6, "ignore_eos": False, "allowed_token_ids": list(range(0, VOCAB_SIZE, 3))},
]
PLAIN = {f"r{number}" for number in range(32) if number % len(KINDS) < 2}  # no filters, no edits
PROMPT_LENGTHS = [1, 5, 16, 17, 33, 64, 100, 121, 127, 128, 129, 150]


def requests_of_all_kinds(count: int = 32) -> list[Request]:
    requests = []
    for number in range(count):
        stem = [(3 * i + number % 3) % VOCAB_SIZE for i in range(PROMPT_LENGTHS[number % len(PROMPT_LENGTHS)])]
        params = {"max_tokens": 12, "ignore_eos": True, "logprobs": number % 4} | KINDS[number % len(KINDS)]
        requests.append(make_request(f"r{number}", [*stem, number], seed=number // 2, **params))
    return requests


@cache
def model(dtype):
    return tiny_decoder(dtype)


@cache
def alone(dtype) -> Answers:
    answers: Answers = {}
    for request in requests_of_all_kinds():
        engine = make_engine(model(dtype), max_num_seqs=1, enable_prefix_caching=False)
        answers |= run(engine, [request])
    return answers


def bits(answers: Answers):
    return {key: answer.bits for key, answer in answers.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_differ_from_request_to_request(dtype):
    assert len({tuple(answer.token_ids) for answer in alone(dtype).values()}) == 32


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_a_batch_of_32(dtype):
    assert bits(run(make_engine(model(dtype)), requests_of_all_kinds())) == bits(alone(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_steps_that_are_shortened_for_those_that_decode(dtype):
    assert bits(run(make_engine(model(dtype), max_step_ms=0.001), requests_of_all_kinds())) == bits(alone(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_another_order_beside_sequences_that_come_and_go(dtype):
    engine = make_engine(model(dtype), max_num_seqs=11, max_num_batched_tokens=50)
    strangers = [make_request(f"s{number}", [number] * (1 + number), max_tokens=30) for number in range(20)]

    def abort_some(number):
        engine.abort(f"s{number // 3}")

    answers = run(engine, strangers[:10] + requests_of_all_kinds()[::-1] + strangers[10:], each_step=abort_some)
    assert bits({key: answer for key, answer in answers.items() if key[0].startswith("r")}) == bits(alone(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", [13, 40])
def test_with_prompts_computed_in_small_chunks(dtype, budget):
    engine = make_engine(model(dtype), max_num_batched_tokens=budget)
    assert bits(run(engine, requests_of_all_kinds())) == bits(alone(dtype))


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_with_a_cache_in_another_dtype_however_it_was_filled(kv_cache_dtype):
    config = {"kv_cache_dtype": kv_cache_dtype, "block_size": 4}
    whole = run(make_engine(model(torch.bfloat16), **config), requests_of_all_kinds())
    engine = make_engine(model(torch.bfloat16), max_num_batched_tokens=13, **config)
    assert bits(run(engine, requests_of_all_kinds()[::-1])) == bits(whole)
    assert bits(run(engine, requests_of_all_kinds())) == bits(whole)  # from the prefix cache
    assert bits(whole) != bits(alone(torch.bfloat16))
    assert engine.numerics_id.endswith(f"-bfloat16-kv_{kv_cache_dtype}")


def test_with_prompts_computed_token_by_token():
    requests = requests_of_all_kinds()[5:8]
    answers = run(make_engine(model(torch.bfloat16), max_num_batched_tokens=1), requests)
    assert bits(answers) == {key: bits(alone(torch.bfloat16))[key] for key in answers}


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_beginnings_from_the_prefix_cache(dtype):
    engine = make_engine(model(dtype), block_size=4)
    assert bits(run(engine, requests_of_all_kinds())) == bits(alone(dtype))
    again = run(engine, requests_of_all_kinds())
    assert bits(again) == bits(alone(dtype))
    assert sum(answer.num_cached_tokens for answer in again.values()) > 1000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_after_being_preempted(dtype, enable_prefix_caching):
    config = {"block_size": 1, "max_model_len": 170, "enable_prefix_caching": enable_prefix_caching}
    engine = make_engine(model(dtype), kv_cache_memory_bytes=1000 * _bytes_per_token(dtype), **config)
    assert bits(run(engine, requests_of_all_kinds())) == bits(alone(dtype))
    assert engine.stats().num_preemptions > 5


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 40, "block_size": 4}, {"max_num_seqs": 3}])
def test_with_steps_that_are_scheduled_while_the_one_before_computes(config):
    dtype = torch.bfloat16
    plain = [r for r in requests_of_all_kinds() if r.request_id in PLAIN]  # their tokens stay on the device
    engine = make_engine(model(dtype), async_scheduling=True, **config)
    assert bits(run(engine, plain)) == {key: value for key, value in bits(alone(dtype)).items() if key[0] in PLAIN}
    assert bits(run(engine, requests_of_all_kinds())) == bits(alone(dtype))
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_what_ends_an_answer_ends_it_in_steps_that_overlap_too():
    def requests():
        for number, stop_id in enumerate(range(0, VOCAB_SIZE, 7)):
            params = {"ignore_eos": False, "stop_token_ids": [stop_id, stop_id + 1], "n": 1 + number % 3}
            yield make_request(f"r{number}", [number, 5, 9], seed=number, max_tokens=1 + number % 40, **params)

    plain, ahead = (run(make_engine(model(torch.float32), async_scheduling=x), requests()) for x in (False, True))
    assert ahead == plain
    assert {answer.finish_reason for answer in ahead.values()} == {"stop", "length"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_more_threads(dtype):
    torch.set_num_threads(2)
    try:
        answers = run(make_engine(model(dtype)), requests_of_all_kinds(4))
    finally:
        torch.set_num_threads(1)
    assert bits(answers) == {key: bits(alone(dtype))[key] for key in answers}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [{}, {"enable_prefix_caching": False, "max_num_seqs": 3}, {"block_size": 1}])
def test_the_first_of_many_choices_is_the_only_one_of_one(dtype, config):
    many = [make_request(r.request_id, r.prompt_ids, **_with(r, n=3)) for r in requests_of_all_kinds(10)]
    answers = run(make_engine(model(dtype), **config), many)
    assert {key: value for key, value in bits(answers).items() if key[1] == 0} == {
        key: value for key, value in bits(alone(dtype)).items() if int(key[0][1:]) < 10
    }


def test_a_choice_is_the_same_however_many_there_are():
    for request in requests_of_all_kinds(6):
        two, five = (
            run(
                make_engine(model(torch.bfloat16), **config),
                [make_request("r", request.prompt_ids, **_with(request, n=n))],
            )
            for n, config in ((2, {}), (5, {"enable_prefix_caching": False}))
        )
        assert bits(two) == {key: value for key, value in bits(five).items() if key[1] < 2}


def test_an_answer_goes_on_the_same_from_any_of_its_tokens():
    """Random numbers belong to a token's place in the sequence, so it can be taken up again as a longer prompt."""
    requests, answers = requests_of_all_kinds()[:4], alone(torch.bfloat16)
    for request in requests:
        answer = answers[request.request_id, 0]
        longer = make_request("longer", request.prompt_ids + answer.token_ids[:5], **_with(request, max_tokens=7))
        rest = run(make_engine(model(torch.bfloat16)), [longer])["longer", 0]
        assert (rest.token_ids, rest.logprobs) == (answer.token_ids[5:], answer.logprobs[5:])


def test_greedy_choices_are_all_the_same():
    request = make_request("r", [5, 6, 7, 8], n=6, temperature=0.0, max_tokens=20, logprobs=2, ignore_eos=True)
    answers = run(make_engine(model(torch.bfloat16)), [request])
    assert all(answer.bits == answers["r", 0].bits for answer in answers.values())


def test_sampled_choices_differ():
    request = make_request("r", [5, 6, 7, 8], n=6, max_tokens=20, ignore_eos=True)
    answers = run(make_engine(model(torch.bfloat16)), [request])
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_answer_that_is_scored_as_a_prompt_has_the_log_probabilities_it_was_drawn_with(dtype):
    requests = requests_of_all_kinds()
    scored = []
    for request in requests:
        answer = alone(dtype)[request.request_id, 0].token_ids
        params = {"max_tokens": 0, "prompt_logprobs": request.params.logprobs}
        scored.append(make_request(request.request_id, request.prompt_ids + answer, **params))
    answers = run(make_engine(model(dtype), max_num_batched_tokens=100), scored)
    for request in requests:
        key = request.request_id, 0
        assert answers[key].prompt_logprobs[len(request.prompt_ids) :] == alone(dtype)[key].logprobs


def _with(request: Request, **changes: object) -> dict[str, object]:
    fields = {name: getattr(request.params, name) for name in type(request.params).__slots__}
    return fields | changes


def _bytes_per_token(dtype: torch.dtype) -> int:
    """Of the tiny decoder: 2 layers, keys and values, 2 heads of size 16."""
    return 2 * 2 * 2 * 16 * dtype.itemsize
