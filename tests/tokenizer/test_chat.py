"""Chat templates: rendered as `transformers` renders them, in a sandbox, and what goes wrong is the request's fault."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.tokenizer.chat import ChatTemplate
from polyserve.tokenizer.chat_templates import BUILT_IN_TEMPLATES
from polyserve.tokenizer.load import load_tokenizer
from support.tokenizers import train_byte_level_bpe, write_byte_level_bpe, write_sentencepiece

Messages = list[dict[str, object]]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "bos, trimming and indentation": (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'system' %}\n"
        "[{{ message.content | trim }}]\n"
        "    {% else %}\n"
        "{{ message.role }}: {{ message['content'] | trim }}{{ eos_token }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}assistant: {% endif %}\n"
    ),
    "tools and documents": (
        "{%- if tools is not none %}{{ raise_exception('tools') }}{% endif %}"
        "{%- if not documents %}{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}{% endif %}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "generation blocks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}"
        "{{ ns.n }}"
    ),
    "absent tokens": "{{ pad_token }}{{ nothing }}{{ messages[0].content }}",
}
CONVERSATIONS: dict[str, Messages] = {
    "one": [{"role": "user", "content": "Wie heißt du?"}],
    "system": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "สวัสดี <b>&'\""}],
    "several turns": [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": " ok "},
        {"role": "user", "content": "日本 🙂"},
        {"role": "assistant", "content": "The answer is "},
    ],
}


def by_transformers(source: str, messages: Messages, **options: bool) -> str:
    reference = PreTrainedTokenizerFast(tokenizer_object=REFERENCE, bos_token="<s>", eos_token="</s>")
    rendered = reference.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert isinstance(rendered, str)
    return rendered


REFERENCE: tokenizers.Tokenizer = train_byte_level_bpe(300)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendering_is_that_of_transformers(name: str, conversation: str, add_generation_prompt: bool) -> None:
    source, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    assert template(source).render(messages, add_generation_prompt=add_generation_prompt) == by_transformers(
        source, messages, add_generation_prompt=add_generation_prompt
    )


@pytest.mark.parametrize("name", ["chatml", "bos, trimming and indentation"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_continuing_the_last_message_is_that_of_transformers(name: str, conversation: str) -> None:
    source, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    rendered = template(source).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered == by_transformers(source, messages, continue_final_message=True)


@pytest.mark.model_package
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_template_of_smollm2_renders_as_in_transformers(smollm2_file: Path, conversation: str) -> None:
    tokenizer = load_tokenizer(smollm2_file)
    assert tokenizer.chat_template is not None
    messages = CONVERSATIONS[conversation]
    expected = by_transformers(tokenizer.chat_template.source, messages, add_generation_prompt=True)
    assert tokenizer.render_chat(messages) == expected


def test_the_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "x"}]
    template(CHATML).render(messages, add_generation_prompt=False, continue_final_message=True)  # type: ignore[arg-type]
    assert messages == [{"role": "user", "content": "x"}]


def test_a_template_knows_the_time() -> None:
    assert template("{{ strftime_now('%Y') }}").render([]) == str(datetime.now().year)


def test_what_a_template_refuses_is_the_requests_fault() -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first, please') }}{% endif %}"
    with pytest.raises(InvalidRequest, match="user first, please") as caught:
        template(source).render([{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["x"]}],
        [{"role": 3, "content": "x"}],
    ],
)
def test_messages_that_a_template_does_not_expect_are_the_requests_fault(messages: Messages) -> None:
    with pytest.raises(InvalidRequest, match="the chat template refuses these messages"):
        template(CHATML).render(messages)


def test_a_template_that_is_none_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ModelLoadError, match=r"the chat template cannot be read: line 2: .*endfor"):
        template("first\n{% endfor %}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ dict.mro() }}",
    ],
)
def test_a_template_cannot_reach_python(attack: str) -> None:
    try:
        rendered = template(attack).render([{"role": "user", "content": "x"}])
    except InvalidRequest:
        return
    assert rendered == ""


@pytest.mark.parametrize(
    ("options", "messages", "expected"),
    [
        ({"add_generation_prompt": True}, CONVERSATIONS["one"], "add_generation_prompt must be false"),
        ({"add_generation_prompt": False}, [], "needs a last message"),
        ({"add_generation_prompt": False}, [{"role": "user", "content": None}], "needs a last message"),
    ],
)
def test_a_last_message_that_cannot_be_continued_is_refused(
    options: dict[str, bool], messages: Messages, expected: str
) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        template(CHATML).render(messages, continue_final_message=True, **options)


def test_a_template_that_leaves_the_last_message_out_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequest, match="leaves the last message out"):
        template("fixed").render(CONVERSATIONS["one"], add_generation_prompt=False, continue_final_message=True)


def built_in(name: str, *messages: tuple[str, str], add_generation_prompt: bool = True) -> str:
    conversation: Messages = [{"role": role, "content": content} for role, content in messages]
    return template(BUILT_IN_TEMPLATES[name]).render(conversation, add_generation_prompt=add_generation_prompt)


def test_polylm_base_is_raw_text() -> None:
    prompt = ("user", "Beijing is the capital of China.\nTranslate this sentence from English to Chinese.")
    assert built_in("polylm-base", prompt) == prompt[1]
    assert built_in("polylm-base", ("system", "a"), ("user", " b\n"), ("assistant", "c")) == "a\n b\n\nc"


def test_polylm_multialpaca_is_the_prompt_of_its_demo() -> None:
    assert built_in("polylm-multialpaca", ("user", "Translate.\nHello")) == "Translate.\nHello\n\n"
    turns = (("user", "a"), ("assistant", "b\n\nc"), ("user", "d"))
    assert built_in("polylm-multialpaca", *turns) == "a\n\nb\n\nc\nd\n\n"


@pytest.mark.parametrize(
    ("query", "expected"),
    [("a\n\n\nb", "a\nb"), ("\n\na\n\n", "\na\n"), ("\n\n\n", "\n"), ("", ""), ("a\n \n\nb", "a\n \nb"), ("a", "a")],
)
def test_polylm_multialpaca_collapses_newlines_in_queries(query: str, expected: str) -> None:
    assert built_in("polylm-multialpaca", ("user", query)) == expected + "\n\n"


def test_polylm_chat_marks_who_speaks() -> None:
    assert built_in("polylm-chat", ("user", "hi")) == "<|user|>\nhi\n<|assistant|>\n"
    turns = (("user", "hi"), ("assistant", "ho"), ("user", "he"))
    assert built_in("polylm-chat", *turns) == "<|user|>\nhi\n<|assistant|>\nho\n<|user|>\nhe\n<|assistant|>\n"
    assert built_in("polylm-chat", *turns[:2], add_generation_prompt=False) == "<|user|>\nhi\n<|assistant|>\nho\n"


@pytest.mark.parametrize("name", ["polylm-multialpaca", "polylm-chat"])
def test_the_tuned_polylm_templates_name_a_role_they_do_not_know(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} knows the roles user and assistant, got 'system'"):
        built_in(name, ("system", "x"), ("user", "y"))


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_an_open_answer_can_be_continued_with_every_built_in_template(name: str) -> None:
    conversation: Messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer "}]
    built = template(BUILT_IN_TEMPLATES[name])
    rendered = built.render(conversation, add_generation_prompt=False, continue_final_message=True)
    assert rendered.endswith("The answer ")


def test_a_polylm_folder_is_chatted_with_in_raw_text_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, 600)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    messages: Messages = [{"role": "user", "content": "hi"}]
    assert load_tokenizer(folder).render_chat(messages) == "hi"
    told = load_tokenizer(folder, chat_template="polylm-chat")
    assert told.render_chat(messages) == "<|user|>\nhi\n<|assistant|>\n"


def test_a_jinja_file_goes_before_the_checkpoints_template(tmp_path: Path) -> None:
    folder = write_byte_level_bpe(tmp_path, 300, config={"eos_token": "</s>", "chat_template": "its own"})
    assert load_tokenizer(folder).render_chat([]) == "its own"
    (tmp_path / "mine.jinja").write_text("mine{{ eos_token }}{{ bos_token }}\n")
    assert load_tokenizer(folder, chat_template=str(tmp_path / "mine.jinja")).render_chat([]) == "mine</s>"


def test_the_template_file_of_a_folder_goes_before_its_configuration(tmp_path: Path) -> None:
    folder = write_byte_level_bpe(tmp_path, 300, config={"eos_token": "</s>", "chat_template": "configuration"})
    (folder / "chat_template.jinja").write_text("file ü")
    assert load_tokenizer(folder).render_chat([]) == "file ü"


def test_of_several_named_templates_the_default_is_used(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write_byte_level_bpe(tmp_path, 300, config={"eos_token": "</s>", "chat_template": named})
    assert load_tokenizer(folder).render_chat([]) == "yes"


def test_a_template_that_is_neither_a_file_nor_built_in_is_named(tmp_path: Path) -> None:
    folder = write_byte_level_bpe(tmp_path, 300)
    with pytest.raises(
        ModelLoadError, match="'polylm-chta' is neither a file nor one of polylm-base, polylm-multialpaca"
    ):
        load_tokenizer(folder, chat_template="polylm-chta")
