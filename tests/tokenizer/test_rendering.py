"""Templates in a process of their own: the same prompts, and an end to those that would take all time or memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.tokenizer.chat import ChatTemplate
from polyserve.tokenizer.chat_templates import BUILT_IN_TEMPLATES
from polyserve.tokenizer.rendering import TemplateProcess

MESSAGES: list[dict[str, object]] = [
    {"role": "user", "content": "hi 東京 \ud800\n"},
    {"role": "assistant", "content": ""},
]
ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
HOSTILE = {
    "loops": ENDLESS,
    "loops in a macro": "{% macro f() %}" + ENDLESS + "{% endmacro %}{{ f() }}",
    "a repeated string": "{{ 'a' * 2000000000 }}",
    "a repeated list": "{{ [0] * 2000000000 }}",
    "center": "{{ 'x'.center(2000000000) }}",
    "the filter center": "{{ 'x'|center(2000000000) }}",
    "indent": "{{ 'x\n'|indent(2000000000) }}",
    "a format": "{{ '%2000000000d' % 1 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "double": "{% set n = namespace(s='ab') %}{% for _ in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "grow": "{% set n = namespace(s='a') %}{% for _ in 'x' * 40 %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
    "join": "{{ range(99999)|join('x' * 100000) }}",
    "lipsum": "{{ lipsum(n=9999999) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "much output": "{% for a in range(99999) %}{{ 'x' * 100 }}{% endfor %}",
}
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ (messages|attr('__class__')) }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '%s'|format(messages.append(1)) }}",
    "{% set x = messages.clear() %}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ joiner.__init__.__builtins__ }}",
    "{{ [].__class__.__base__.__subclasses__()[0] }}",
    "{{ ().__class__.__bases__[0] }}",
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token=None)


@contextmanager
def process(source: str, *, timeout_s: float = 10.0) -> Iterator[TemplateProcess]:
    opened = TemplateProcess(template(source), timeout_s=timeout_s)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize(
    "source", [*BUILT_IN_TEMPLATES.values(), "{{ bos_token }}{{ eos_token }}{{ messages|tojson }}"]
)
def test_a_prompt_is_the_same_as_rendered_here(source: str) -> None:
    with process(source) as rendered:
        for options in ({}, {"add_generation_prompt": False}):
            assert rendered.render(MESSAGES, **options) == template(source).render(MESSAGES, **options)


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    with process("{{ raise_exception('not\nthis') }}") as rendered, pytest.raises(InvalidRequest) as error:
        rendered.render(MESSAGES)
    assert (error.value.param, "not\nthis" in error.value.message) == ("messages", True)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_in_time(name: str) -> None:
    with process(HOSTILE[name], timeout_s=0.5) as rendered:
        for _ in range(2):  # the second time in another process, where the first was ended
            with pytest.raises(InvalidRequest, match="the chat template"):
                rendered.render(MESSAGES)


def test_a_process_that_was_killed_is_replaced() -> None:
    with process("{{ messages[0].role }}") as rendered:
        assert rendered.render(MESSAGES) == "user"
        os.kill(rendered._process.pid, 9)
        rendered._process.wait()
        assert rendered.render(MESSAGES) == "user"


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_reach_python(source: str) -> None:
    try:
        text = template(source).render(MESSAGES)
    except InvalidRequest:
        return
    assert text == ""  # what the sandbox hides is undefined, which is written as nothing


@pytest.mark.parametrize(
    "make", [lambda: "{{ " + "(" * 5000 + ")" * 5000 + " }}", lambda: "{% if a %}" * 3000 + "{% endif %}" * 3000]
)
def test_a_template_that_python_cannot_compile_is_refused(make: Callable[[], str]) -> None:
    with pytest.raises(ModelLoadError, match="the chat template cannot be"):
        template(make())


def test_nothing_is_computed_where_a_template_is_compiled() -> None:
    for source in ("{{ 'a' * 2000000000 }}", "{{ 'x'|center(2000000000) }}", "{% if 9 ** (9 ** 9) %}{% endif %}"):
        template(source)
