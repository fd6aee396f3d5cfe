"""Beam search in the engine: which answers it finds, what it shares, and what its clients hear."""

import pytest
import torch

from polyserve.engine.beam import BeamSearch
from polyserve.engine.step import Candidate
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams
from support.engine_runs import Answer, Answers, make_engine, make_request, run
from support.paper_beams import beam_answers
from support.paper_runner import PaperEngine, a_request
from support.tiny_decoder import EOS, VOCAB_SIZE, tiny_decoder

PROMPTS = [
    [(5 * i + start) % VOCAB_SIZE for i in range(length)] for start, length in enumerate((1, 7, 16, 33, 100, 129))
]
KINDS: list[dict[str, object]] = [
    {"best_of": 4},
    {"n": 3, "best_of": 5, "early_stopping": True, "logprobs": 2},
    {"n": 2, "early_stopping": "never", "length_penalty": 0.0, "repetition_penalty": 1.3, "prompt_logprobs": 1},
    {"best_of": 3, "ignore_eos": True, "frequency_penalty": 0.5, "logit_bias": {7: 3.0}, "logprobs": 0},
    {"n": 4, "min_tokens": 5, "allowed_token_ids": [EOS, *range(10, VOCAB_SIZE, 4)]},
    {"best_of": 2, "length_penalty": -1.0, "stop_token_ids": list(range(0, VOCAB_SIZE, 9))},
]  # fmt: skip


def beam(request_id: str, prompt: list[int], **params: object):
    return make_request(request_id, prompt, **({"use_beam_search": True, "max_tokens": 14} | params))


def requests():
    return [beam(f"b{i}", prompt, **kind) for i, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    return tiny_decoder(request.param)


def bits(answers: Answers):
    return {key: answer.bits for key, answer in answers.items() if key[0].startswith("b")}


def alone(model) -> dict[tuple[str, int], Answer]:
    answers: Answers = {}
    for request in requests():
        answers |= run(make_engine(model, enable_prefix_caching=False), [request])
    return answers


@pytest.mark.parametrize("config", [
    {},
    {"max_num_batched_tokens": 11, "max_num_seqs": 6},
    {"block_size": 1, "kv_cache_memory_bytes": 420 * 512, "max_model_len": 160},
    {"async_scheduling": True},
    {"block_size": 4, "async_scheduling": True, "max_num_batched_tokens": 40},
])  # fmt: skip
def test_answers_do_not_depend_on_company_chunks_or_preemption(model, config):
    strangers = [make_request(f"s{i}", [i + 1] * (4 * i + 1), max_tokens=25, seed=i) for i in range(8)]
    engine = make_engine(model, **config)
    answers = run(engine, [*strangers[:4], *requests(), *strangers[4:]])
    assert bits(answers) == bits(alone(model))
    assert bits(run(engine, requests())) == bits(alone(model))  # from the prefix cache
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_one_beam_is_greedy(model):
    plain = {"temperature": 0.0, "max_tokens": 20, "logprobs": 2, "ignore_eos": True}
    greedy = run(make_engine(model), [make_request("b", PROMPTS[3], **plain)])
    searched = run(make_engine(model), [beam("b", PROMPTS[3], **plain)])
    assert bits(searched) == bits(greedy)


def test_log_probabilities_are_the_models_own_and_scored_as_a_prompt_they_are_the_same(model):
    request = beam("b", PROMPTS[1], n=3, best_of=4, logprobs=2, repetition_penalty=1.5)
    found = run(make_engine(model), [request])
    for choice in range(3):
        answer = found["b", choice]
        scoring = make_request("s", PROMPTS[1] + answer.token_ids, max_tokens=0, prompt_logprobs=2)
        assert run(make_engine(model), [scoring])["s", 0].prompt_logprobs[len(PROMPTS[1]) :] == answer.logprobs


def test_a_stream_begins_before_the_search_ends_and_takes_nothing_back():
    engine = PaperEngine()
    request = a_request("b", [1, 2, 3], use_beam_search=True, best_of=2, n=2, max_tokens=40)
    engine.scheduler.add(request)
    num_early = 0
    while engine.scheduler.has_work:
        before = len(engine.tokens.get(("b", 0), []))
        engine.step()
        num_early += engine.scheduler.has_work and len(engine.tokens.get(("b", 0), [])) > before
    assert num_early > 3
    assert [engine.tokens["b", choice] for choice in (0, 1)] == beam_answers(request, 61)


def test_beams_share_their_blocks_and_copy_no_more_than_one_to_part():
    engine = PaperEngine(num_blocks=100)
    engine.scheduler.add(a_request("b", [1] * 41, use_beam_search=True, best_of=4, max_tokens=20))
    engine.step()
    engine.step()  # the end of the prompt
    while engine.scheduler.has_work:
        step = engine.step()
        assert len(step.copies) <= 3
        assert all(chunk.num_tokens == 1 for chunk in step.chunks), "nothing is computed twice"
        assert engine.blocks.pool.num_blocks - engine.blocks.pool.num_free <= 10 + 4 * 6


@pytest.mark.parametrize("num_blocks", range(12, 40, 3))
def test_beams_that_fill_the_cache_come_to_an_end_as_long_as_there_is_room_for(num_blocks):
    engine = PaperEngine(num_blocks=num_blocks, max_model_len=45, enable_prefix_caching=False)
    request = a_request("b", [1, 2, 3, 4, 5], use_beam_search=True, best_of=3, max_tokens=None)
    room = engine.scheduler.room_for(request)
    engine.scheduler.add(request)
    engine.drain(1000)
    assert len(engine.tokens["b", 0]) == room > 0


def test_what_room_is_reckoned_for_is_enough_even_if_the_beams_part_at_once():
    for num_blocks in range(12, 40):
        engine = PaperEngine(num_blocks=num_blocks, max_model_len=45)
        request = a_request("b", [1, 2, 3, 4, 5], use_beam_search=True, best_of=3, max_tokens=None)
        total = 5 + engine.scheduler.room_for(request)
        assert 1 + 3 * (-(-total // 4) - 1) + 2 <= num_blocks  # full block of the prompt, own ones, to spare for two


def test_the_end_of_a_choice_leaves_the_others_and_that_of_all_leaves_nothing():
    engine = PaperEngine()
    request = a_request("b", [1, 2, 3], use_beam_search=True, best_of=4, n=2, max_tokens=10)
    engine.scheduler.add(request)
    engine.step()
    engine.scheduler.abort("b", 0)
    engine.drain()
    assert ("b", 0) not in engine.last or engine.last["b", 0].finish_reason is None
    assert engine.tokens["b", 1] == beam_answers(request, 61)[1]
    engine.scheduler.add(request)
    engine.step()
    engine.scheduler.abort("b")
    assert not engine.scheduler.has_work
    assert engine.blocks.pool.num_free == engine.blocks.pool.num_blocks


def test_a_search_that_goes_on_in_another_engine_repeats_nothing():
    request = a_request("b", [1, 2, 3], use_beam_search=True, best_of=2, max_tokens=40)
    [whole] = beam_answers(request, 61)
    engine = PaperEngine()
    engine.scheduler.add(type(request)("b", request.prompt_ids, request.params, answered={0: whole[:3]}))
    engine.drain()
    assert engine.tokens["b", 0] == whole[3:]


def test_a_fault_in_one_beam_ends_all_choices_once():
    engine = PaperEngine()
    engine.scheduler.add(a_request("b", [1, 2, 3], use_beam_search=True, best_of=4, n=2, max_tokens=10))
    for _ in range(4):
        engine.step()
    engine.step(failing=frozenset([1]))
    assert [engine.last["b", choice].finish_reason for choice in (0, 1)] == ["error", "error"]
    assert not engine.scheduler.has_work


def test_where_there_are_fewer_answers_than_choices_the_last_one_stands_for_the_rest():
    model = tiny_decoder()
    request = beam("b", [5, 6], n=3, allowed_token_ids=[9], max_tokens=4)
    answers = run(make_engine(model), [request])
    assert [answers["b", choice].token_ids for choice in range(3)] == [[9, 9, 9, 9]] * 3


@pytest.mark.parametrize(("params", "config", "name"), [
    ({"best_of": 9}, {"max_num_seqs": 8}, "best_of"),
    ({"n": 9}, {"max_num_batched_tokens": 8}, "n"),
    ({"n": 4}, {"kv_cache_memory_bytes": 6 * 16 * 512}, "prompt"),
])  # fmt: skip
def test_more_beams_than_an_engine_can_follow_are_refused(params, config, name):
    engine = make_engine(tiny_decoder(), **config)
    with pytest.raises(InvalidRequest) as error:
        engine.add(beam("b", [5] * 40, **params))
    assert error.value.param == name
    assert not engine.has_work()


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(token_id, score, score, None) for token_id, score in enumerate(scores, start=10)]


def end(score: float) -> Candidate:
    return Candidate(EOS, score, score, None)


@pytest.mark.parametrize(("early_stopping", "length_penalty", "next_token", "ended"), [
    (True, 1.0, -0.5, True),  # there are as many answers as beams
    (False, 1.0, -0.5, False),  # (-1.5 - 0.5) / 2 is better than the worse answer's (-1.5 - 0.6) / 2
    (False, 1.0, -0.7, True),
    ("never", 1.0, -0.7, False),  # / 100 it would be better
    ("never", 0.0, -0.7, True),
])  # fmt: skip
def test_early_stopping_has_three_meanings(early_stopping, length_penalty, next_token, ended):
    params = SamplingParams(
        use_beam_search=True, n=2, early_stopping=early_stopping, length_penalty=length_penalty, max_tokens=100
    )
    search = BeamSearch(params, max_tokens=100, eos_ids=[EOS])
    search.advance([[end(-0.5), *candidates(-1.5, -1.6)]])
    assert not search.ended
    assert len(search.best) == 1
    search.advance([[end(-0.6), *candidates(next_token, -0.9)], candidates(-1.0, -1.1)])
    assert search.ended is ended


def test_an_answer_that_is_not_among_the_best_candidates_is_no_answer():
    search = BeamSearch(SamplingParams(use_beam_search=True, n=2, max_tokens=9), max_tokens=9, eos_ids=[EOS])
    search.advance([[*candidates(-1.0, -1.1), end(-1.2)]])
    assert search.best == []


def test_beams_agree_on_a_token_when_all_that_can_be_answered_have_it():
    search = BeamSearch(SamplingParams(use_beam_search=True, n=2, max_tokens=9), max_tokens=9, eos_ids=[EOS])
    search.advance([candidates(-0.1, -3.0)])
    assert search.num_agreed() == 0
    search.advance([candidates(-0.1, -0.2), candidates(-3.0, -4.0)])
    assert search.num_agreed() == 1
