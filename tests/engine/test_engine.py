"""The engine as its callers see it: what it refuses, what it answers, and what a fault does."""

import logging

import pytest
import torch

from polyserve.engine.runner import ModelRunner
from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.request import Request
from polyserve.sampling_params import SamplingParams
from support.engine_runs import make_engine, make_request, run
from support.tiny_decoder import EOS, MAX_LEN, VOCAB_SIZE, tiny_config, tiny_decoder

BYTES_PER_BLOCK = 2 * 2 * 16 * 2 * 16 * 4


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def test_it_tells_what_a_front_has_to_know(model):
    engine = make_engine(model)
    assert (engine.vocab_size, engine.max_model_len, engine.eos_ids, engine.bos_id) == (VOCAB_SIZE, MAX_LEN, (EOS,), 1)
    assert engine.numerics_id.endswith("-float32")


@pytest.mark.parametrize(("prompt_ids", "params", "message"), [
    ([], {}, "at least one token"),
    ([VOCAB_SIZE], {}, f"token id {VOCAB_SIZE}"),
    ([-1], {}, "token id -1"),
    ([5] * MAX_LEN, {}, "1 too many"),
    ([5], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ([5], {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
    ([5], {"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ([5], {"allowed_token_ids": [EOS, 9], "stop_token_ids": [9], "min_tokens": 1}, "allowed_token_ids"),
])  # fmt: skip
def test_a_request_that_can_never_be_served_is_refused_at_once(model, prompt_ids, params, message):
    engine = make_engine(model)
    with pytest.raises(InvalidRequest, match=message):
        engine.add(make_request("r", prompt_ids, **params))
    assert not engine.has_work()


def test_a_prompt_that_leaves_no_room_for_an_answer_can_be_scored(model):
    request = make_request("r", [5] * MAX_LEN, max_tokens=0, prompt_logprobs=0)
    answer = run(make_engine(model), [request])["r", 0]
    assert (answer.finish_reason, len(answer.prompt_logprobs)) == ("length", MAX_LEN)


def test_a_request_without_a_seed_is_the_callers_mistake(model):
    with pytest.raises(ValueError, match="seed"):
        make_engine(model).add(Request("r", [5], SamplingParams()))


def test_an_answer_is_cut_to_what_fits(model):
    request = make_request("r", [5] * (MAX_LEN - 3), max_tokens=100, ignore_eos=True)
    answer = run(make_engine(model), [request])["r", 0]
    assert (len(answer.token_ids), answer.finish_reason) == (3, "length")


def test_the_longest_sequence_can_be_set(model):
    engine = make_engine(model, max_model_len=40)
    answer = run(engine, [make_request("r", [5] * 10, max_tokens=None, ignore_eos=True)])["r", 0]
    assert (engine.max_model_len, len(answer.token_ids)) == (40, 30)


def test_a_longest_sequence_beyond_the_models_is_refused(model):
    with pytest.raises(ModelLoadError, match=f"at most {MAX_LEN}, got {MAX_LEN + 1}"):
        make_engine(model, max_model_len=MAX_LEN + 1)


def test_a_cache_smaller_than_the_longest_sequence_shortens_it_and_says_so(model, caplog):
    with caplog.at_level(logging.WARNING, logger="polyserve"):
        engine = make_engine(model, kv_cache_memory_bytes=3 * BYTES_PER_BLOCK)
    assert engine.max_model_len == 48
    assert "holds 48 tokens" in caplog.text
    answer = run(engine, [make_request("r", [5] * 40, max_tokens=None, ignore_eos=True)])["r", 0]
    assert len(answer.token_ids) == 8


def test_a_cache_without_room_for_a_block_is_refused(model):
    with pytest.raises(ModelLoadError, match="one block"):
        make_engine(model, kv_cache_memory_bytes=BYTES_PER_BLOCK - 1)


def test_without_work_a_step_does_nothing(model):
    assert make_engine(model).step() == []


def test_the_end_of_sequence_ends_an_answer_and_is_reported(model):
    request = make_request("r", [5, 6], logit_bias={EOS: 100.0}, max_tokens=9)
    answer = run(make_engine(model), [request])["r", 0]
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == ([EOS], "stop", None)


def test_min_tokens_keeps_the_end_of_sequence_away(model):
    params = {"logit_bias": {EOS: 100.0, 9: 50.0}, "stop_token_ids": [9], "min_tokens": 4, "max_tokens": 9}
    answer = run(make_engine(model), [make_request("r", [5, 6], **params)])["r", 0]
    assert len(answer.token_ids) == 5
    assert answer.token_ids[4] == EOS
    assert not {EOS, 9} & set(answer.token_ids[:4])


def test_a_stop_token_ends_an_answer_and_is_named(model):
    request = make_request("r", [5, 6], logit_bias={77: 100.0}, stop_token_ids=[77])
    answer = run(make_engine(model), [request])["r", 0]
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == ([77], "stop", 77)


def test_only_allowed_tokens_come(model):
    request = make_request("r", [5], allowed_token_ids=[10, 20, 30], max_tokens=40, temperature=3.0)
    assert set(run(make_engine(model), [request])["r", 0].token_ids) == {10, 20, 30}


def test_a_repetition_penalty_keeps_tokens_from_coming_again(model):
    params = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
    plain = run(make_engine(model), [make_request("r", [5], **params)])["r", 0].token_ids
    penalised = run(make_engine(model), [make_request("r", [5], repetition_penalty=50.0, **params)])["r", 0].token_ids
    assert len(set(penalised)) > len(set(plain))


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_of_the_answer_change_it_once_a_token_came(model, name):
    params = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, "logit_bias": {50: 20.0}}
    plain = run(make_engine(model), [make_request("r", [5], **params)])["r", 0].token_ids
    penalised = run(make_engine(model), [make_request("r", [5], **{name: 2.0}, **params)])["r", 0].token_ids
    assert plain == [50] * 30
    assert penalised[0] == 50
    assert (penalised == plain) == (name == "presence_penalty")  # 2 once is less than 20, 2 for each time is more


def test_log_probabilities_come_with_every_token_if_asked_for(model):
    requests = [make_request(f"r{k}", [5, 6], logprobs=k, max_tokens=4, ignore_eos=True) for k in (0, 3)]
    requests.append(make_request("none", [5, 6], max_tokens=4, ignore_eos=True))
    answers = run(make_engine(model), requests)
    assert [len(entry.top_ids) for entry in answers["r0", 0].logprobs] == [0] * 4
    assert [len(entry.top_ids) for entry in answers["r3", 0].logprobs] == [3] * 4
    assert answers["none", 0].logprobs == []


def test_prompt_log_probabilities_begin_with_none_and_are_the_models(model):
    prompt = [5, 9, 5, 200, 17, 3]
    answer = run(make_engine(model), [make_request("r", prompt, prompt_logprobs=2, max_tokens=1)])["r", 0]
    entries = answer.prompt_logprobs
    assert entries[0] is None
    assert [entry.token_id for entry in entries[1:]] == prompt[1:]
    assert all(entry.top_logprobs[0] >= entry.logprob for entry in entries[1:])
    assert all(len(entry.top_ids) == 2 for entry in entries[1:])


def test_a_soft_cap_bounds_the_logits():
    capped = tiny_decoder(config=tiny_config(final_soft_cap=0.5))
    answer = run(make_engine(capped), [make_request("r", [5, 6], logprobs=VOCAB_SIZE, max_tokens=3)])["r", 0]
    for entry in answer.logprobs:
        assert entry.top_logprobs[0] - entry.top_logprobs[-1] < 1.001


def test_an_aborted_request_is_forgotten(model):
    engine = make_engine(model)
    engine.add(make_request("gone", [5] * 20, max_tokens=50))
    engine.step()
    engine.abort("gone")
    assert not engine.has_work()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_one_choice_can_be_aborted(model):
    engine = make_engine(model)
    request = make_request("r", [5] * 20, n=3, max_tokens=6, ignore_eos=True)
    answers = run(engine, [request], each_step=lambda number: engine.abort("r", 1) if number == 3 else None)
    assert {key[1]: len(answer.token_ids) for key, answer in answers.items()} == {0: 6, 1: 2, 2: 6}


def test_cached_prompt_tokens_are_reported_for_the_first_choice(model):
    engine = make_engine(model)
    requests = [make_request(name, list(range(50)), n=2, max_tokens=2) for name in ("first", "second")]
    run(engine, requests[:1])
    answers = run(engine, requests[1:])
    assert [answers["second", choice].num_cached_tokens for choice in (0, 1)] == [48, 0]
    assert engine.stats().prefix_hit_tokens == 48


@pytest.mark.parametrize(("salt", "num_cached"), [("ours", 48), ("theirs", 0), (None, 0)])
def test_cached_prompt_tokens_are_shared_within_a_salt(model, salt, num_cached):
    engine = make_engine(model)
    run(engine, [make_request("first", list(range(50)), max_tokens=2, cache_salt="ours")])
    answers = run(engine, [make_request("second", list(range(50)), max_tokens=2, cache_salt=salt)])
    assert answers["second", 0].num_cached_tokens == num_cached


def test_a_model_that_gives_no_numbers_for_one_sequence_fails_that_one_alone():
    broken = tiny_decoder()
    broken.embedding.weight[13] = torch.nan
    requests = [make_request(f"r{token_id}", [5, token_id, 7], max_tokens=5, ignore_eos=True) for token_id in (12, 13)]
    answers = run(make_engine(broken), requests)
    assert (answers["r13", 0].finish_reason, answers["r13", 0].token_ids) == ("error", [])
    assert "finite" in answers["r13", 0].error
    assert answers["r12", 0].bits == run(make_engine(broken), requests[:1])["r12", 0].bits


def test_prompt_log_probabilities_that_are_no_numbers_fail_that_sequence_alone():
    broken = tiny_decoder()
    broken.embedding.weight[13] = torch.nan
    engine = make_engine(broken, max_num_batched_tokens=2)
    requests = [
        make_request(name, [first, 5, 6, 7], max_tokens=0, prompt_logprobs=0)
        for name, first in (("bad", 13), ("good", 12))
    ]
    answers = run(engine, requests)
    assert {key[0]: answer.finish_reason for key, answer in answers.items()} == {"bad": "error", "good": "length"}


def test_after_a_step_that_could_not_be_computed_every_answer_is_what_it_would_have_been(model, caplog, monkeypatch):
    requests = [make_request(f"r{n}", [5, 6, n], n=1 + n % 2, max_tokens=5, ignore_eos=True) for n in range(6)]
    undisturbed = {key: answer.bits for key, answer in run(make_engine(model), requests).items()}
    compute, failing = ModelRunner._compute, iter([False, False, True, False, True, True])

    def out_of_memory(*arguments):
        if next(failing, False):
            raise MemoryError("out of memory")
        return compute(*arguments)

    monkeypatch.setattr(ModelRunner, "_compute", out_of_memory)
    engine = make_engine(model, max_num_seqs=4)
    answers = run(engine, requests)
    ended = {key: answer.bits for key, answer in answers.items() if answer.error is None}
    assert ended == {key: bits for key, bits in undisturbed.items() if key in ended}
    assert len(ended) == len(undisturbed) - 2  # two faults met a sequence that was alone
    assert "out of memory" in caplog.text
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_fault_of_one_request_ends_that_one_alone(model, monkeypatch):
    requests = [make_request(f"r{n}", [5, 6, n], max_tokens=5, ignore_eos=True) for n in range(6)]
    undisturbed = {key: answer.bits for key, answer in run(make_engine(model), requests).items()}
    compute = ModelRunner._compute

    def faulty(runner, batch):
        if 3 in batch.token_ids:
            raise RuntimeError("a fault of token 3")
        return compute(runner, batch)

    monkeypatch.setattr(ModelRunner, "_compute", faulty)
    engine = make_engine(model)
    answers = run(engine, requests)
    assert (answers.pop(("r3", 0)).finish_reason, undisturbed.pop(("r3", 0))[0] != []) == ("error", True)
    assert {key: answer.bits for key, answer in answers.items()} == undisturbed
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_broken_invariant_is_raised(model, monkeypatch):
    engine = make_engine(model)
    engine.add(make_request("r", [5]))

    def broken(*_):
        raise AssertionError("this cannot be")

    monkeypatch.setattr(ModelRunner, "_compute", broken)
    with pytest.raises(AssertionError, match="this cannot be"):
        engine.step()
