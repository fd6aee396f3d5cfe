"""A JSONL file of requests is read as a whole; the first bad line is named."""

import json

import pytest

from polyserve.cli.rows import Row, read_rows
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams


def read(*rows: object, given: dict[str, object] | None = None) -> list[Row]:
    return read_rows([json.dumps(row).encode() for row in rows], given or {})


def test_prompts_may_be_text_or_token_ids():
    assert [row.prompt for row in read({"prompt": "hé"}, {"prompt": [1, 2]})] == ["hé", [1, 2]]


def test_messages_are_kept_for_the_template():
    [row] = read({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b", "name": "c"}]})
    assert row.prompt is None
    assert row.messages == [{"role": "system", "content": "a"}, {"role": "user", "content": "b", "name": "c"}]


def test_a_row_takes_the_flags_and_overrides_them():
    rows = read(
        {"prompt": "a"}, {"prompt": "b", "temperature": 0, "stop": ["x"]}, given={"temperature": 0.5, "seed": 1}
    )
    assert rows[0].params == SamplingParams(temperature=0.5, seed=1)
    assert rows[1].params == SamplingParams(temperature=0.0, seed=1, stop=["x"])


def test_a_chat_has_no_limit_of_tokens_unless_one_is_given():
    messages = [{"role": "user", "content": "a"}]
    assert read({"messages": messages})[0].params.max_tokens is None
    assert read({"messages": messages}, given={"max_tokens": 5})[0].params.max_tokens == 5
    assert read({"prompt": "a"})[0].params.max_tokens == 16


def test_an_id_is_kept_whatever_it_is():
    assert [row.id for row in read({"prompt": "a", "id": 7}, {"prompt": "a", "id": "x"}, {"prompt": "a"})] == [
        7,
        "x",
        None,
    ]


def test_logit_bias_has_string_keys_in_json():
    assert read({"prompt": "a", "logit_bias": {"5": -1}})[0].params.logit_bias == {5: -1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "empty, where a JSON object was expected"),
        (b"{", "truncated"),
        (b"[1]", "Expected `object`, got `array`"),
        (b'{"prompt": "\xff"}', "can't decode byte 0xff"),
        (b"{}", "one of prompt and messages must be there, and not both"),
        (b'{"prompt": "a", "messages": []}', "one of prompt and messages must be there, and not both"),
        (b'{"prompt": 3}', "prompt must be text or a list of token ids"),
        (b'{"prompt": ["a"]}', "prompt must be text or a list of token ids"),
        (b'{"prompt": "a", "temprature": 1}', "unknown field 'temprature'"),
        (b'{"prompt": "a", "temperature": -1}', "temperature must be at least 0"),
        (b'{"prompt": "a", "stop": "x"}', "`$.stop`"),
        (b'{"messages": []}', "messages must not be empty"),
        (b'{"messages": ["hi"]}', "messages must be a list of objects with a role and a content"),
        (b'{"messages": [{"role": "user"}]}', "content is required"),
        (b'{"messages": [{"role": "parrot", "content": "a"}]}', "parrot"),
        (b'{"messages": [{"role": "user", "content": "a", "mood": "b"}]}', "unknown field 'mood' in a message"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line, message):
    with pytest.raises(InvalidRequest) as caught:
        read_rows([b'{"prompt": "good"}', line, b"worse"], {})
    assert caught.value.message.startswith("line 2: ")
    assert message in caught.value.message
