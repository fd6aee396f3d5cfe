"""The grammars of messages with calls, tried byte by byte: what they allow, and that the parser reads just that."""

import pytest

from polyserve.engine.grammar import byte_tokenizer, compile_grammar
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams
from polyserve.tools.calls import Calls
from polyserve.tools.definition import Tool, ToolUse
from polyserve.tools.formats import FORMATS, choose_format
from support.fake_llm import ByteTokenizer

ADD = Tool(
    "add",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
)
NOW = Tool("now")
TOKENIZER = byte_tokenizer()


def calls_of(form: str, **use: object) -> Calls:
    return Calls.of(ToolUse(tools=[ADD, NOW], **use), FORMATS[form])


def allows(calls: Calls, text: str, **options: object) -> bool:
    """Whether the text is a whole message."""
    params = SamplingParams(**calls.guide(options, ByteTokenizer()))
    matcher = compile_grammar(params, TOKENIZER)
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


def message(form: str, *calls: tuple[str, str]) -> str:
    """Calls as the format writes them."""
    f = FORMATS[form]
    written = [(f'"{name}"' if f.quoted else name) + f.middle + arguments + f.end for name, arguments in calls]
    return f.begin + f.between.join(written) + f.last


ONE = [("add", '{"a": 12}')]
TWO = [*ONE, ("now", "{}")]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("use", [{}, {"required": True}, {"parallel": False}, {"named": "add"}])
def test_a_call_is_allowed_and_read(form, use):
    calls, text = calls_of(form, **use), message(form, *ONE)
    assert allows(calls, text)
    parser = calls.parser()
    delta = parser.push(text)
    assert (delta.text + parser.flush(cut=False).text, [(c.name, c.arguments) for c in delta.calls]) == ("", ONE)


@pytest.mark.parametrize("form", FORMATS)
def test_how_many_calls_there_may_be_is_the_requests_choice(form):
    assert allows(calls_of(form, required=True), message(form, *TWO))
    assert not allows(calls_of(form, required=True, parallel=False), message(form, *TWO))
    assert not allows(calls_of(form, named="add"), message(form, *TWO))
    assert not allows(calls_of(form, named="now"), message(form, *ONE))
    assert allows(calls_of(form), message(form, *TWO))
    assert not allows(calls_of(form, parallel=False), message(form, *TWO))


@pytest.mark.parametrize("form", FORMATS)
def test_text_is_allowed_only_where_calls_are_not_required(form):
    for text in ("Hello.", "京 {1}", "[1]", ""):
        assert allows(calls_of(form), text)
        assert not allows(calls_of(form, required=True), text)
        assert not allows(calls_of(form, named="add"), text)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "wrong", [("add", '{"a": "x"}'), ("add", "{}"), ("add", '{"a": 1, "b": 2}'), ("sub", '{"a": 1}')]
)
def test_arguments_are_held_to_the_schema_also_where_the_model_is_free_to_call(form, wrong):
    for use in ({}, {"required": True}):
        assert not allows(calls_of(form, **use), message(form, wrong))


def test_text_may_surround_calls_of_hermes():
    call = message("hermes", *ONE)
    assert allows(calls_of("hermes"), f"I add. {call}\n{call} Done.")
    assert not allows(calls_of("hermes"), "I add <tool_call> nothing")


def test_json_that_is_no_call_is_text_for_a_model_that_calls_in_json():
    assert allows(calls_of("llama3"), '{"sum": 3}')
    assert not allows(calls_of("llama3"), '{"name": "Bob"}')


@pytest.mark.parametrize("form", FORMATS)
def test_text_can_be_held_to_a_schema_of_its_own(form):
    schema = '{"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}'
    for text, is_allowed in (('{"sum": 3}', True), ("3", False), (message(form, *ONE), True)):
        assert allows(calls_of(form), text, guided_json=schema) == is_allowed


def test_only_a_strict_function_is_refused_for_what_its_schema_asks():
    for strict in (False, True):
        tool = Tool("f", parameters={"type": "object", "uniqueItems": True}, strict=strict)
        params = SamplingParams(**Calls.of(ToolUse(tools=[tool]), FORMATS["hermes"]).guide({}, ByteTokenizer()))
        if strict:
            with pytest.raises(InvalidRequest, match="uniqueItems"):
                compile_grammar(params, TOKENIZER)
        else:
            compile_grammar(params, TOKENIZER)


@pytest.mark.parametrize(("template", "form"), [
    ("{{ '<tool_call>' }}", "hermes"),
    ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
    ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral-args"),
    ("<|python_tag|>", "llama3"),
    ("{{ messages }}", None),
    (None, None),
])  # fmt: skip
def test_the_template_tells_the_format_where_that_is_certain(template, form):
    assert choose_format("auto", template) is FORMATS.get(form or "")
    assert choose_format("none", template) is None
    assert choose_format("gemma", template) is FORMATS["gemma"]
