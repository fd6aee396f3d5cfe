"""Grammars are tried where they can do no harm: what they cost at most, and what becomes of those after them."""

import asyncio
import json

from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams
from polyserve.service.grammar_checker import GrammarChecker

GOOD = SamplingParams(guided_json='{"type": "object", "properties": {"a": {"type": "integer"}}}')
ENDLESS = SamplingParams(
    guided_json='{"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}'
)  # takes minutes
TOO_DEEP = SamplingParams(
    guided_grammar="start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(5000)) + 'r5000: "x"'
)  # overflows the stack


async def verdicts(limit_ms: int, *asked: SamplingParams) -> list[str | None]:
    checker = GrammarChecker(limit_ms=limit_ms)
    try:
        return [await verdict(checker, params) for params in asked]
    finally:
        await checker.close()


async def verdict(checker: GrammarChecker, params: SamplingParams) -> str | None:
    try:
        await checker.check(params)
    except InvalidRequest as error:
        return f"{error.param}: {error.message}"
    return None


def test_good_and_bad_are_told_apart():
    bad = SamplingParams(guided_json='{"not": {}}')
    found = asyncio.run(verdicts(500, GOOD, bad, SamplingParams(), GOOD, bad))
    assert found[:1] + found[2:4] == [None] * 3
    assert (
        found[1]
        == found[4]
        == 'guided_json: guided_json cannot be followed: the keywords ["not"] of JSON Schema are not supported'
    )


def test_a_grammar_that_takes_too_long_is_refused_and_the_next_is_tried():
    late, good = asyncio.run(verdicts(100, ENDLESS, GOOD))
    assert (late, good) == ("guided_json: guided_json takes more than 100 ms to compile", None)


def test_a_grammar_that_ends_its_process_is_refused_and_the_next_is_tried():
    deep, good = asyncio.run(verdicts(2000, TOO_DEEP, GOOD))
    assert (deep, good) == (
        "guided_grammar: guided_grammar takes more memory to compile than a grammar may have",
        None,
    )


def test_a_client_that_leaves_takes_nobodys_verdict_along():
    async def leave_and_ask() -> list[str | None]:
        checker = GrammarChecker(limit_ms=500)
        try:
            for number in range(6):
                leaving = asyncio.create_task(checker.check(SamplingParams(guided_json=json.dumps({"const": number}))))
                await asyncio.sleep(0.01 * number)
                leaving.cancel()
            asked = [SamplingParams(guided_regex="(" if number % 2 else "a") for number in range(4)]
            return await asyncio.gather(*(verdict(checker, params) for params in asked))
        finally:
            await checker.close()

    found = asyncio.run(leave_and_ask())
    assert [message is None for message in found] == [True, False, True, False]
