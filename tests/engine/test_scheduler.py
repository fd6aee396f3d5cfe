"""What the scheduler gives each step, and what becomes of sequences. Blocks have 4 tokens."""

import pytest

from support.paper_runner import EOS, PaperEngine, a_request, answer_to, next_token, paper_score


def chunks_of(step):
    return {chunk.seq_id: (chunk.start, chunk.num_tokens) for chunk in step.chunks}


def eos_seed(prompt_ids, wanted=EOS):
    """A seed with which the first token of the answer is `wanted`."""
    return next(seed for seed in range(10_000) if next_token(prompt_ids, seed, 0) == wanted)


def test_a_long_prompt_is_computed_in_chunks_beside_a_sequence_that_decodes():
    engine = PaperEngine(max_num_batched_tokens=8)
    engine.scheduler.add(a_request("short", [1, 2, 3]))
    assert chunks_of(engine.step()) == {0: (0, 3)}
    engine.scheduler.add(a_request("long", list(range(20))))
    assert chunks_of(engine.step()) == {0: (3, 1), 1: (0, 7)}
    assert chunks_of(engine.step()) == {0: (4, 1), 1: (7, 7)}
    assert chunks_of(engine.step()) == {0: (5, 1), 1: (14, 6)}
    assert chunks_of(engine.step()) == {0: (6, 1), 1: (20, 1)}


def test_whoever_decodes_gets_a_token_in_every_step_though_a_long_prompt_goes_before():
    engine = PaperEngine(max_num_batched_tokens=8)
    engine.scheduler.add(a_request("short", [1, 2, 3]))
    engine.step()
    engine.scheduler.add(a_request("long", list(range(20)), priority=-1))
    assert chunks_of(engine.step()) == {0: (3, 1), 1: (0, 7)}
    assert chunks_of(engine.step()) == {0: (4, 1), 1: (7, 7)}


def test_a_step_can_be_shortened_and_prompts_get_on_all_the_same():
    engine = PaperEngine(max_num_batched_tokens=60, num_blocks=64, max_model_len=128)
    engine.scheduler.add(a_request("short", [1, 2, 3]))
    engine.step()
    engine.scheduler.add(a_request("long", list(range(100))))
    assert engine.scheduler.answering
    assert chunks_of(engine.step(max_tokens=30)) == {0: (3, 1), 1: (0, 29)}
    assert chunks_of(engine.step(max_tokens=1)) == {0: (4, 1), 1: (29, 17)}
    assert chunks_of(engine.step(max_tokens=1000)) == {0: (5, 1), 1: (46, 54)}


def test_a_step_never_computes_more_than_its_budget():
    engine = PaperEngine(max_num_batched_tokens=5)
    for number in range(12):
        engine.scheduler.add(a_request(f"r{number}", [number] * 7, max_tokens=5))
    while engine.scheduler.has_work:
        assert 0 < engine.step().num_tokens <= 5


def test_requests_begin_in_the_order_they_came():
    engine = PaperEngine(max_num_seqs=2, max_num_batched_tokens=6)
    for number in range(10):
        engine.scheduler.add(a_request(f"r{number}", [number] * (1 + number % 4), max_tokens=2))
    admitted = []
    while engine.scheduler.has_work:
        admitted += [new.seq_id for new in engine.step().admitted]
    assert admitted == list(range(10))


def test_requests_of_a_lower_priority_begin_first():
    engine = PaperEngine(max_num_seqs=1)
    for number, priority in enumerate([0, 5, -1, 0, -1]):
        engine.scheduler.add(a_request(f"r{number}", [number], max_tokens=2, priority=priority))
    admitted = []
    while engine.scheduler.has_work:
        admitted += [new.seq_id for new in engine.step().admitted]
    assert admitted == [2, 4, 0, 3, 1]


def test_blocks_are_taken_from_the_highest_priority_before_the_youngest():
    engine = PaperEngine(num_blocks=6, max_model_len=24)
    engine.scheduler.add(a_request("unimportant", [1, 2, 3], max_tokens=20, priority=1))
    engine.step()
    engine.scheduler.add(a_request("important", [1, 2, 3], max_tokens=20))
    while engine.last.get(("important", 0)) is None or engine.last["important", 0].finish_reason is None:
        engine.step()
    assert engine.scheduler.stats.num_preemptions >= 1
    assert engine.last["unimportant", 0].finish_reason is None


def test_a_prompt_begins_with_the_blocks_of_an_equal_one_and_computes_at_least_one_token():
    engine = PaperEngine()
    prompt = list(range(12))
    engine.scheduler.add(a_request("first", prompt, max_tokens=1))
    engine.drain()
    engine.scheduler.add(a_request("second", prompt, max_tokens=1))
    assert chunks_of(engine.step()) == {1: (8, 4)}
    assert (engine.last["first", 0].num_cached_tokens, engine.last["second", 0].num_cached_tokens) == (0, 8)


def test_a_prompt_shares_blocks_with_one_that_still_runs():
    engine = PaperEngine()
    engine.scheduler.add(a_request("first", [5] * 9, max_tokens=20))
    engine.step()
    engine.scheduler.add(a_request("second", [5] * 8 + [6], max_tokens=20))
    assert chunks_of(engine.step()) == {0: (9, 1), 1: (8, 1)}


def test_of_a_prompt_that_is_forgotten_bit_by_bit_the_beginning_is_found_longest():
    engine = PaperEngine(num_blocks=6, max_model_len=24)
    engine.scheduler.add(a_request("first", list(range(20)), max_tokens=1))
    engine.drain()
    engine.scheduler.add(
        a_request("other", [9] * 11, max_tokens=1)
    )  # takes the block that was never named, and two more
    engine.drain()
    engine.scheduler.add(a_request("again", list(range(20)), max_tokens=1))
    engine.drain()
    assert engine.last["again", 0].num_cached_tokens == 12


def test_the_next_turn_finds_what_the_answer_computed():
    engine = PaperEngine()
    engine.scheduler.add(a_request("turn one", [1, 2, 3], max_tokens=10))
    engine.drain()
    conversation = [1, 2, 3, *engine.tokens["turn one", 0]]
    engine.scheduler.add(a_request("turn two", [*conversation, 4], max_tokens=1))
    engine.drain()
    assert engine.last["turn two", 0].num_cached_tokens == 12  # the last token of the answer was never computed


def test_without_the_prefix_cache_nothing_is_found():
    engine = PaperEngine(enable_prefix_caching=False)
    for name in ("first", "second"):
        engine.scheduler.add(a_request(name, [1] * 12, max_tokens=1))
        engine.drain()
    assert engine.last["second", 0].num_cached_tokens == 0
    assert engine.runner.num_computed_tokens == 24


def test_a_prompt_is_scored_from_the_cache_as_far_as_its_log_probabilities_are_kept():
    engine = PaperEngine(max_num_batched_tokens=5)
    prompt = list(range(1, 18))
    cached = {}
    for name, num_top in (("plain", None), ("first", 0), ("again", 0), ("wider", 3), ("narrower", 2)):
        engine.scheduler.add(a_request(name, prompt, max_tokens=1, prompt_logprobs=num_top))
        engine.drain()
        cached[name] = engine.last[name, 0].num_cached_tokens
        if num_top is not None:
            assert engine.prompt_logprobs[name] == [None, *(paper_score(prompt, i) for i in range(1, 17))]
    # the last block that was scored is computed again: in it the token after the ones before is predicted
    assert cached == {"plain": 0, "first": 0, "again": 12, "wider": 0, "narrower": 12}


def test_prompt_log_probabilities_come_once_with_the_first_token():
    engine = PaperEngine()
    engine.scheduler.add(a_request("scored", [1, 2, 3], max_tokens=2, prompt_logprobs=0))
    engine.step()
    assert len(engine.last["scored", 0].prompt_logprobs) == 3
    engine.step()
    assert engine.last["scored", 0].prompt_logprobs is None


def test_a_request_for_no_tokens_ends_when_its_prompt_is_computed():
    engine = PaperEngine(max_num_batched_tokens=4)
    engine.scheduler.add(a_request("scored", list(range(10)), max_tokens=0, n=2, prompt_logprobs=0))
    engine.drain()
    assert [engine.last["scored", choice].finish_reason for choice in (0, 1)] == ["length", "length"]
    assert [engine.tokens["scored", choice] for choice in (0, 1)] == [[], []]
    assert len(engine.last["scored", 0].prompt_logprobs) == 10
    assert engine.runner.num_computed_tokens == 10


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_later_choices_compute_only_the_last_token_of_the_prompt(enable_prefix_caching):
    engine = PaperEngine(enable_prefix_caching=enable_prefix_caching)
    engine.scheduler.add(a_request("many", list(range(10)), n=4, max_tokens=9))
    assert chunks_of(engine.step()) == {0: (0, 10)}
    assert chunks_of(engine.step()) == {0: (10, 1), 1: (9, 1), 2: (9, 1), 3: (9, 1)}
    assert engine.runner.num_copies == 3
    assert engine.scheduler.stats.num_free_blocks == 64 - (2 + 4)  # two shared blocks, and each choice's own third


def test_the_last_token_of_a_prompt_that_begins_a_block_is_not_worth_a_copy():
    engine = PaperEngine()
    engine.scheduler.add(a_request("many", list(range(9)), n=3, max_tokens=9))
    engine.drain()
    assert engine.runner.num_copies == 0
    assert engine.runner.num_computed_tokens == 9 + 2 + 3 * 8


def test_choices_wait_for_the_whole_prompt():
    engine = PaperEngine(max_num_batched_tokens=4)
    engine.scheduler.add(a_request("many", list(range(10)), n=2, max_tokens=2))
    assert [chunks_of(engine.step()) for _ in range(4)] == [
        {0: (0, 4)},
        {0: (4, 4)},
        {0: (8, 2)},
        {0: (10, 1), 1: (9, 1)},
    ]


def test_choices_come_before_requests_that_are_younger():
    engine = PaperEngine(max_num_seqs=2)
    engine.scheduler.add(a_request("many", [1, 2], n=3, max_tokens=3))
    for name in ("younger", "youngest"):
        engine.scheduler.add(a_request(name, [3], max_tokens=1))
    admitted = []
    while engine.scheduler.has_work:
        admitted += [new.seq_id for new in engine.step().admitted]
    assert admitted == [0, 3, 1, 2, 4]


def test_when_the_first_choice_is_aborted_the_next_one_computes_the_prompt():
    engine = PaperEngine(max_num_batched_tokens=4)
    request = a_request("many", list(range(10)), n=3, max_tokens=2)
    engine.scheduler.add(request)
    engine.step()
    engine.scheduler.abort("many", 0)
    engine.drain()
    assert engine.tokens == {("many", choice): answer_to(request, choice, 64) for choice in (1, 2)}


def test_the_youngest_gives_way_when_blocks_run_out_and_still_gets_the_same_answer():
    engine = PaperEngine(num_blocks=6, max_model_len=24)
    requests = [a_request(name, [1, 2, 3], seed=seed, max_tokens=20) for seed, name in enumerate(("old", "young"))]
    for request in requests:
        engine.scheduler.add(request)
    finished = []
    while engine.scheduler.has_work:
        engine.step()
        finished += [key for key, output in engine.last.items() if output.finish_reason and key not in finished]
    assert engine.scheduler.stats.num_preemptions >= 1
    assert finished == [("old", 0), ("young", 0)]
    assert engine.tokens == {(request.request_id, 0): answer_to(request, 0, 24) for request in requests}


def test_a_sequence_is_not_admitted_into_room_that_the_running_ones_need_next():
    engine = PaperEngine(num_blocks=6, max_model_len=24, enable_prefix_caching=False)
    for number in range(3):
        engine.scheduler.add(a_request(f"r{number}", [number] * 7, max_tokens=2))
    engine.step()
    stats = engine.scheduler.stats
    assert (stats.num_running, stats.num_waiting) == (2, 1)  # two blocks each, and one to spare for each that runs
    engine.drain()
    assert engine.scheduler.stats.num_preemptions == 0


def test_the_end_of_sequence_ends_an_answer():
    engine = PaperEngine()
    engine.scheduler.add(a_request("r", [1], seed=eos_seed([1]), ignore_eos=False))
    engine.step()
    output = engine.last["r", 0]
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([EOS], "stop", None)


def test_the_end_of_sequence_can_be_ignored():
    engine = PaperEngine()
    engine.scheduler.add(a_request("r", [1], seed=eos_seed([1]), ignore_eos=True, max_tokens=3))
    engine.drain()
    assert (len(engine.tokens["r", 0]), engine.last["r", 0].finish_reason) == (3, "length")


def test_a_stop_token_ends_an_answer_and_is_named():
    engine = PaperEngine()
    engine.scheduler.add(a_request("r", [1], seed=eos_seed([1], wanted=9), stop_token_ids=[8, 9]))
    engine.step()
    output = engine.last["r", 0]
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([9], "stop", 9)


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_an_answer_ends_where_the_longest_sequence_ends(max_tokens):
    engine = PaperEngine(max_model_len=20)
    engine.scheduler.add(a_request("r", list(range(15)), max_tokens=max_tokens))
    engine.drain()
    assert (len(engine.tokens["r", 0]), engine.last["r", 0].finish_reason) == (5, "length")


def test_an_aborted_request_says_nothing_more_and_its_blocks_are_free():
    engine = PaperEngine()
    engine.scheduler.add(a_request("gone", [1, 2, 3], n=3, max_tokens=9))
    engine.scheduler.add(a_request("stays", [4], max_tokens=4))
    engine.step()
    engine.step()
    before = dict(engine.tokens)
    engine.scheduler.abort("gone")
    engine.drain()
    assert engine.tokens["gone", 0] == before["gone", 0]
    assert len(engine.tokens["stays", 0]) == 4
    assert engine.scheduler.stats.num_free_blocks == 64


def test_a_waiting_request_can_be_aborted():
    engine = PaperEngine(max_num_seqs=1)
    for name in ("runs", "waits", "last"):
        engine.scheduler.add(a_request(name, [1], max_tokens=2))
    engine.step()
    engine.scheduler.abort("waits")
    engine.drain()
    assert set(engine.last) == {("runs", 0), ("last", 0)}


def test_one_choice_can_be_aborted_while_the_step_that_computes_it_runs():
    engine = PaperEngine()
    request = a_request("many", [1, 2, 3], n=3, max_tokens=5)
    engine.scheduler.add(request)
    engine.step()
    engine.step(meanwhile=lambda: engine.scheduler.abort("many", 1))
    engine.drain()
    assert engine.tokens == {("many", choice): answer_to(request, choice, 64) for choice in (0, 2)}


def test_aborting_what_has_just_ended_does_nothing():
    engine = PaperEngine()
    engine.scheduler.add(a_request("r", [1], max_tokens=1))
    engine.drain()
    engine.scheduler.abort("r")
    engine.scheduler.abort("never heard of", 3)
    assert not engine.scheduler.has_work


def test_a_sequence_that_fails_ends_alone():
    engine = PaperEngine()
    engine.scheduler.add(a_request("bad", [1], max_tokens=3))
    engine.scheduler.add(a_request("good", [2], max_tokens=3))
    engine.step(failing=frozenset([0]))
    assert (engine.last["bad", 0].finish_reason, engine.last["bad", 0].error) == ("error", "told to fail")
    engine.drain()
    assert (len(engine.tokens["good", 0]), engine.last["good", 0].finish_reason) == (3, "length")


def test_after_a_step_that_cannot_be_computed_its_sequences_are_tried_one_by_one():
    engine = PaperEngine(max_num_seqs=2)
    requests = [a_request(name, [1, 2, 3, 4, 5], max_tokens=3) for name in ("a", "b", "waits")]
    for request in requests:
        engine.scheduler.add(request)
    engine.fail_step()
    assert not engine.last
    assert chunks_of(engine.step()) == {0: (0, 5)}  # nothing of the failed step is taken for computed
    assert chunks_of(engine.step()) == {1: (4, 1)}
    assert chunks_of(engine.step()) == {0: (5, 1), 1: (5, 1)}
    engine.drain()
    assert engine.tokens == {(request.request_id, 0): answer_to(request, 0, 64) for request in requests}


def test_what_cannot_be_computed_alone_is_ended_and_nobody_else():
    engine = PaperEngine(max_num_seqs=2)
    for name in ("a", "b", "waits"):
        engine.scheduler.add(a_request(name, [1, 2, 3, 4, 5], max_tokens=3))
    engine.fail_step()
    engine.fail_step()
    assert {key: output.finish_reason for key, output in engine.last.items()} == {("a", 0): "error"}
    engine.drain()
    assert [len(engine.tokens[name, 0]) for name in ("b", "waits")] == [3, 3]


def test_the_statistics_count_prompts_that_were_looked_up():
    engine = PaperEngine()
    for name in ("first", "second"):
        engine.scheduler.add(a_request(name, [1] * 12, n=2, max_tokens=2))
        engine.drain()
    stats = engine.scheduler.stats
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (24, 8)
