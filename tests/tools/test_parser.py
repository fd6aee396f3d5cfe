"""Calls in a message, found while it is written: the same however it is cut, and no character of a text is lost."""

from itertools import count, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyserve.tools.formats import FORMATS
from polyserve.tools.parser import CallParser

NAMES = ["get_weather", "name", "get", "get_weather2"]

MESSAGES = {  # format, text -> content, calls
    "hermes": [
        ('<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>', "", [("get", '{"a": 1}')]),
        ('I look.\n<tool_call>{"name":"name","arguments":{}}</tool_call>', "I look.", [("name", "{}")]),
        (
            '<tool_call>\n{"name": "get", "arguments": {"a": "}\\"{"}}\n</tool_call>\n<tool_call>\n'
            '{"name": "get_weather2", "arguments": {"b": [{}, {"c": "é京😀"}]}}\n</tool_call>',
            "",
            [("get", '{"a": "}\\"{"}'), ("get_weather2", '{"b": [{}, {"c": "é京😀"}]}')],
        ),
        ('<tool_call>{"name": "get", "arguments": {}}</tool_call> and more ', " and more ", [("get", "{}")]),
        ('<tool_call>{"name": "get", "arguments": {}}</tool_call>\n', "", [("get", "{}")]),
        ('<tool_call>{"name": "get", "arguments": {}}', "", [("get", "{}")]),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, []),
        ("Write <tool_call> and then JSON.", None, []),
        ("<<tool_call>tool_call>", None, []),
        (' \n<tool_call>{"name": "get"', None, []),
        ('{"name": "get", "arguments": {}}', None, []),
        ("a < b", None, []),
        ("ends in a space ", None, []),
        ("", "", []),
    ],
    "llama3": [
        ('{"name": "get_weather", "parameters": {"q": "x"}}', "", [("get_weather", '{"q": "x"}')]),
        ('<|python_tag|>{"name": "get", "parameters": {}}', "", [("get", "{}")]),
        (
            '{"name": "get", "parameters": {}}; {"name": "name", "parameters": {"n": 1}}',
            "",
            [("get", "{}"), ("name", '{"n": 1}')],
        ),
        ('{"name": "Bob", "age": 3}', None, []),
        ('{"name": "get", "age": 3}', None, []),
        ('Sure: {"name": "get", "parameters": {}}', None, []),
        ("<|python_tag|>print(1)", None, []),
        ("{}", None, []),
    ],
    "mistral": [
        ('[TOOL_CALLS][{"name": "get", "arguments": {"a": 1}}]', "", [("get", '{"a": 1}')]),
        (
            '[TOOL_CALLS] [{"name": "get", "arguments": {}}, {"name": "name", "arguments": {"a": "]"}}]',
            "",
            [("get", "{}"), ("name", '{"a": "]"}')],
        ),
        ('Well. [TOOL_CALLS][{"name": "get", "arguments": {}}]', "Well.", [("get", "{}")]),
        ("[TOOL_CALLS] is a token", None, []),
        ("[1, 2]", None, []),
    ],
    "mistral-args": [
        ('[TOOL_CALLS]get[ARGS]{"a": 1}', "", [("get", '{"a": 1}')]),
        (
            '[TOOL_CALLS]get[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"b": {}}',
            "",
            [("get", "{}"), ("get_weather", '{"b": {}}')],
        ),
        ("[TOOL_CALLS]unknown[ARGS]{}", None, []),
    ],
    "gemma": [
        ('```json\n{"name": "get", "parameters": {"a": 1}}\n```', "", [("get", '{"a": 1}')]),
        ('{"name": "get", "parameters": {"a": 1}}', "", [("get", '{"a": 1}')]),
        ('```json\n{"name": "Bob"}\n```', None, []),
        ("```python\nprint(1)\n```", None, []),
    ],
}  # fmt: skip
CASES = [(form, *case) for form, cases in MESSAGES.items() for case in cases]


def read(form: str, pieces: list[str], *, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls, from the message in pieces."""
    ids = (f"id{number}" for number in count())
    parser = CallParser(FORMATS[form], NAMES, lambda: next(ids))
    deltas = [parser.push(piece) for piece in pieces] + [parser.flush(cut=cut)]
    calls: list[list[str]] = []
    for delta in deltas:
        for call in delta.calls:
            if call.name is not None:
                assert (call.index, call.id) == (len(calls), f"id{len(calls)}")
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    assert parser.has_called == bool(calls)
    return "".join(delta.text for delta in deltas), [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_a_message_is_read_as_it_was_meant(form, text, content, calls):
    assert read(form, [text]) == (text if content is None else content, calls)


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_every_cut_gives_the_same(form, text, content, calls):
    expected = (text if content is None else content, calls)
    assert read(form, list(text)) == expected
    for place in range(len(text)):
        assert read(form, [text[:place], text[place:]]) == expected


FRAGMENTS = st.sampled_from([
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```json", "```", "{", "}", "[", "]",
    '"', "\\", '"name"', '"get"', '"arguments"', '"parameters"', ":", ",", ";", "get", " ", "\n", "x", "<", "京",
    '{"name": "get", ', '{"name": "get", "arguments": {}}', '{"name": "get", "parameters": {}}',
])  # fmt: skip


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(FRAGMENTS, max_size=12),
    st.lists(st.integers(0, 200), max_size=4),
    st.booleans(),
)
@example("hermes", ["<tool_call>", "<tool_call>", '{"name": "get", "arguments": {}}'], [3], False)
def test_any_text_gives_the_same_however_it_is_cut(form, fragments, places, cut):
    text = "".join(fragments)
    bounds = sorted({0, len(text), *(place for place in places if place < len(text))})
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    whole = read(form, [text], cut=cut)
    assert read(form, pieces, cut=cut) == read(form, list(text), cut=cut) == whole
    if not whole[1] and not cut:
        assert whole[0] == text


@pytest.mark.parametrize(("form", "text"), [
    ("hermes", '<tool_call>\n{"name": "get_wea'),
    ("llama3", '{"name": "get_wea'),
    ("mistral", '[TOOL_CALLS][{"name": "get"'),
    ("mistral-args", "[TOOL_CALLS]get"),
    ("llama3", '{"name": "get", "parameters": {}}; {"na'),
])  # fmt: skip
def test_a_call_that_is_cut_before_its_arguments_is_no_text(form, text):
    assert read(form, [text], cut=True)[0] == ""


def test_arguments_are_passed_on_as_they_come():
    parser = CallParser(FORMATS["hermes"], NAMES, lambda: "id")
    parser.push('<tool_call>\n{"name": "get", "arguments": {"city": "')
    (call,) = parser.push("Bei").calls
    assert (call.name, call.arguments) == (None, "Bei")


def test_much_white_space_takes_no_longer_than_other_text():
    text = "<tool_call>" + " " * 200_000 + "x"
    assert read("hermes", [text]) == (text, [])
