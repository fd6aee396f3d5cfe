"""Structured output from a real small model at temperature 1: answers are valid, or the request was refused by name.

The slow part has 200 schemas and 30 expressions, 5 answers each, and 40 hostile grammars beside a stream that must not
notice: `make structured`.
"""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path

import httpx
import jsonschema
import pytest
import regex

from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest
from polyserve.llm import LLM
from polyserve.sampling_params import SamplingParams
from support.schemas import EXPRESSIONS, HOSTILE, NUM_SCHEMAS, schema
from support.served_model import Served, served

pytestmark = pytest.mark.model_package
PROMPT = "Here is an example:\n"
MAX_TOKENS = 600
# Python's reading of a time is narrower than RFC 3339: it knows at most 6 digits of a second.
CHECKED = jsonschema.FormatChecker(formats=["date", "email", "ipv4", "ipv6", "uuid"])
UNSUPPORTED = ("not supported", "Unknown format", "not implemented")


@pytest.fixture(scope="module")
def llm(smollm2_file: Path) -> LLM:
    return LLM(str(smollm2_file), config=EngineConfig(max_num_seqs=32))


def refusal(llm: LLM, params: SamplingParams) -> str | None:
    try:
        llm.engine.check_grammar(params)
    except InvalidRequest as error:
        return error.message
    return None


def check_all(llm: LLM, asked: dict[str, SamplingParams]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The answers to what can be followed, all of them ended by their grammar, and why the others were refused."""
    refused = {name: why for name, params in asked.items() if (why := refusal(llm, params)) is not None}
    kept = {name: params for name, params in asked.items() if name not in refused}
    outputs = llm.generate([PROMPT] * len(kept), list(kept.values()))
    texts = {name: [answer.text for answer in output.outputs] for name, output in zip(kept, outputs, strict=True)}
    cut = [
        name for name, output in zip(kept, outputs, strict=True) for a in output.outputs if a.finish_reason != "stop"
    ]
    assert not cut, [(name, asked[name], texts[name]) for name in cut]
    return texts, refused


def check_schemas(llm: LLM, numbers: range, num_answers: int) -> dict[str, str]:
    """Returns what was refused."""
    asked = {
        str(number): SamplingParams(
            guided_json=json.dumps(schema(number)), n=num_answers, max_tokens=MAX_TOKENS, seed=number
        )
        for number in numbers
    }
    texts, refused = check_all(llm, asked)
    wrong = []
    for number, answers in texts.items():
        validator = jsonschema.Draft202012Validator(schema(int(number)), format_checker=CHECKED)
        wrong += [(number, text) for text in answers if not validator.is_valid(json.loads(text))]
    assert not wrong
    for number, why in refused.items():
        assert any(words in why for words in UNSUPPORTED), f"schema {number}: {why}"
    return refused


def check_expressions(llm: LLM, expressions: list[str], num_answers: int) -> None:
    asked = {
        expression: SamplingParams(guided_regex=expression, n=num_answers, max_tokens=MAX_TOKENS, seed=1)
        for expression in expressions
    }
    texts, refused = check_all(llm, asked)
    assert not refused
    # as Unicode's TR 18 has it, `\w` also matches a joiner; not so for Python's `re`
    for expression, answers in texts.items():
        assert all(regex.fullmatch(expression, text) for text in answers), (expression, answers)


def test_answers_follow_schemas_of_every_difficulty(llm):
    check_schemas(llm, range(4, NUM_SCHEMAS, 28), 1)


def test_answers_match_expressions(llm):
    check_expressions(llm, EXPRESSIONS[::10], 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_200_schemas_5_answers_each(llm):
    refused = check_schemas(llm, range(NUM_SCHEMAS), 5)
    print(f"{NUM_SCHEMAS - len(refused)} schemas followed, {len(refused)} refused by name: {sorted(map(int, refused))}")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_30_expressions_5_answers_each(llm):
    check_expressions(llm, EXPRESSIONS, 5)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_40_hostile_grammars_end_and_disturb_no_other_stream(smollm2_file: Path):
    with served(smollm2_file, "--max-num-seqs", "8") as server:
        time.sleep(4)  # the engine prepares for grammars in its first idle second
        asyncio.run(beside_a_stream(server))


async def beside_a_stream(server: Served) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        alone, gaps_alone = await stream(client)
        streaming = asyncio.create_task(stream(client, repeat=True))
        statuses = {}
        for name, fields in HOSTILE.items():
            began = time.monotonic()
            response = await client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 16, **fields})
            statuses[name] = response.status_code
            message = response.json()["error"]["message"][:90] if response.status_code != 200 else ""
            print(f"{time.monotonic() - began:6.2f} s  {response.status_code}  {name}: {message!r}")
        streaming.cancel()
        texts, gaps = await streaming
        print(f"longest wait for a token alone {max(gaps_alone):.3f} s, beside them {max(gaps):.3f} s")
        assert set(statuses.values()) <= {200, 400}
        assert set(texts[:-1]) == set(alone)
        assert (await client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})).status_code == 200


async def stream(client: httpx.AsyncClient, *, repeat: bool = False) -> tuple[list[str], list[float]]:
    """The same text over and over, and the seconds between its tokens."""
    texts: list[str] = []
    gaps: list[float] = []
    body = {"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0, "ignore_eos": True, "stream": True}
    with suppress(asyncio.CancelledError):  # within the last text
        while not texts or repeat:
            texts.append("")
            last = None
            async with client.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        texts[-1] += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
                        now = time.monotonic()
                        gaps += [] if last is None else [now - last]
                        last = now
    return texts, gaps
