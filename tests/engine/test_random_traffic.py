"""Random traffic on the scheduler and the block pool against plain accounting on paper.

In every step the paper engine counts the holders of every block and checks that what is read is what belongs there and
that what is written is nobody else's. At the end every answer is the one that was known beforehand, and every block is
free.
"""

import random
from functools import partial

import pytest

from polyserve.request import Request, pooling_request
from support.paper_beams import beam_answers
from support.paper_runner import VOCAB_SIZE, PaperEngine, a_request, answer_to, paper_score

NUM_OPERATIONS = 6_000  # for each of the settings

SETTINGS = {
    "a pool so small that sequences are preempted": {
        "num_blocks": 14, "block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 12, "max_model_len": 48,
    },
    "one slow sequence at a time fits": {
        "num_blocks": 8, "block_size": 8, "max_num_seqs": 4, "max_num_batched_tokens": 5, "max_model_len": 64,
    },
    "room for everyone": {
        "num_blocks": 200, "block_size": 2, "max_num_seqs": 16, "max_num_batched_tokens": 64, "max_model_len": 40,
    },
    "no prefix cache": {
        "num_blocks": 30, "block_size": 2, "max_num_seqs": 8, "max_num_batched_tokens": 24, "max_model_len": 40,
        "enable_prefix_caching": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("overlaps", [False, True], ids=["one after another", "overlapping"])
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_leaks_and_nothing_shared_is_written(name, overlaps):
    rng = random.Random(name)
    engine = PaperEngine(**SETTINGS[name], overlaps=overlaps)
    live: dict[str, Request] = {}
    left: set[tuple[str, int]] = set()  # choices that were aborted or told to fail
    requests: dict[str, Request] = {}
    for number in range(NUM_OPERATIONS):
        kind = rng.random()
        if kind < 0.22 and len(live) < 20:
            request = _random_request(rng, f"r{number}", engine.max_model_len)
            if engine.scheduler.room_for(request) < 1 and request.params.use_beam_search:
                continue  # the engine refuses it
            live[request.request_id] = requests[request.request_id] = request
            engine.scheduler.add(request)
        elif kind < 0.27 and live:
            _abort_one(rng, engine, live, left)
        elif kind < 0.29 and live:
            engine.step(meanwhile=partial(_abort_one, rng, engine, live, left))
        elif kind < 0.30:
            engine.fail_step()
        elif kind < 0.32 and engine.runner.known:
            engine.step(failing=frozenset(rng.choices(list(engine.runner.known), k=2)))
        else:
            engine.step()
        left.update(key for key, output in engine.last.items() if output.finish_reason == "error")
        live = {key: request for key, request in live.items() if _is_live(engine, request, left)}
    engine.drain()
    left.update(key for key, output in engine.last.items() if output.finish_reason == "error")

    stats = engine.scheduler.stats
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
    assert len(requests) > 300
    for request_id, entries in engine.prompt_logprobs.items():
        prompt = requests[request_id].prompt_ids
        assert entries == [None, *(paper_score(prompt, index) for index in range(1, len(prompt)))]
    for request in requests.values():
        for choice in range(request.params.n):
            got, known = engine.tokens.get((request.request_id, choice), []), _answer_to(request, choice, engine)
            whole = (request.request_id, choice) not in left
            assert got == (known if whole else known[: len(got)])
    if name in ("a pool so small that sequences are preempted", "one slow sequence at a time fits"):
        assert stats.num_preemptions > 50
    if name != "no prefix cache":
        assert stats.prefix_hit_tokens > 300
    assert engine.runner.num_copies > 50


def _random_request(rng: random.Random, request_id: str, max_model_len: int) -> Request:
    stem = [rng.randrange(1, 4)] * rng.choice([0, 4, 8, 16, 24])  # few beginnings, so that prompts share them
    prompt_ids = stem + [rng.randrange(1, 6) for _ in range(rng.randrange(1, 12))]
    limit = rng.choice([0, 1, 3, 10, 30, None])
    if rng.random() < 0.1:
        return pooling_request(request_id, prompt_ids[: max_model_len - 1], rng.choice(["last", "mean"]))
    if rng.random() < 0.25:
        return a_request(
            request_id,
            prompt_ids[:16],
            seed=rng.randrange(5),
            ignore_eos=rng.random() < 0.5,
            max_tokens=limit,
            n=rng.choice([1, 1, 2]),
            best_of=rng.choice([2, 2, 3, 4]),
            use_beam_search=True,
            early_stopping=rng.choice([True, False, "never"]),
            length_penalty=rng.choice([1.0, 0.0, 2.0, -0.5]),
            stop_token_ids=rng.choice([[], [rng.randrange(VOCAB_SIZE)]]),
            prompt_logprobs=rng.choice([None, None, None, 0]),
        )
    return a_request(
        request_id,
        prompt_ids[: max_model_len - 1],
        seed=rng.randrange(5),
        ignore_eos=rng.random() < 0.5,
        max_tokens=limit,
        n=rng.choice([1, 1, 1, 2, 5]),
        stop_token_ids=rng.choice([[], [], [rng.randrange(VOCAB_SIZE)]]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )


def _answer_to(request: Request, choice: int, engine: PaperEngine) -> list[int]:
    if not request.params.use_beam_search or request.params.max_tokens == 0:
        return answer_to(request, choice, engine.max_model_len)
    return beam_answers(request, engine.scheduler.room_for(request))[choice]


def _abort_one(rng: random.Random, engine: PaperEngine, live: dict[str, Request], left: set[tuple[str, int]]) -> None:
    request = live[rng.choice(list(live))]
    choice = rng.choice([None, *range(request.params.n)])
    engine.scheduler.abort(request.request_id, choice)
    left.update((request.request_id, c) for c in range(request.params.n) if choice in (None, c))


def _is_live(engine: PaperEngine, request: Request, left: set[tuple[str, int]]) -> bool:
    keys = {(request.request_id, choice) for choice in range(request.params.n)}
    ended = {key for key in keys if key in engine.last and engine.last[key].finish_reason is not None}
    return bool(keys - ended - left)
