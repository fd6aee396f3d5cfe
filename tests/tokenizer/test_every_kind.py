"""What holds for a tokenizer of any kind."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyserve.errors import InvalidRequest
from polyserve.tokenizer.base import Tokenizer
from support.texts import TEXTS

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
# Any text without ▁: SentencePiece writes spaces so, and cannot tell the two apart.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(text=any_text)
def test_decoding_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_tokens_own_text_becomes_its_id(tokenizer: Tokenizer, special: str) -> None:
    ids = tokenizer.encode(f"a{special}b {special}{special}", add_special_tokens=False)
    assert ids.count(SPECIAL[special]) == 3
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a{special}b {special}{special}"
    assert tokenizer.decode(ids) == "ab "


def test_a_text_may_begin_with_a_special_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s>Moskau\n", add_special_tokens=False)
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>Moskau\n"


def test_nearly_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s <unk </s <<s", add_special_tokens=False)
    assert not tokenizer.special_ids.intersection(ids)


def test_bos_is_added_when_the_tokenizer_says_so_and_it_is_asked_for(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("Berlin", add_special_tokens=False)
    assert plain[0] != 1
    assert tokenizer.encode("Berlin") == ([1, *plain] if tokenizer.adds_bos else plain)


def test_special_tokens_are_known_by_id_and_by_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2,))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.special_ids == {0, 1, 2}
    assert [tokenizer.token_bytes(i) for i in range(3)] == [b"<unk>", b"<s>", b"</s>"]


def test_a_tokenizer_without_padding_pads_with_the_end_of_sequence(tokenizer: Tokenizer) -> None:
    assert tokenizer.pad_id == tokenizer.eos_id


def test_every_token_has_bytes_and_all_single_bytes_are_there(tokenizer: Tokenizer) -> None:
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert all(table)
    assert {bytes([byte]) for byte in range(256)} <= set(table)


def test_joined_token_bytes_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text, add_special_tokens=False))
    assert joined.decode() in (text, f" {text}")


def test_part_of_a_character_is_shown_as_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)  # in no training text: encoded in bytes
    parts = [i for i in ids if not tokenizer.token_bytes(i).isspace()]
    assert len(parts) > 1
    assert "\ufffd" in tokenizer.token_text(parts[0])
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_an_id_that_does_not_exist_is_named(tokenizer: Tokenizer, bad: int) -> None:
    for call in (tokenizer.token_bytes, tokenizer.token_text, lambda i: tokenizer.decode([3, i])):
        with pytest.raises(
            InvalidRequest, match=f"no token {bad}; this tokenizer's ids are 0 to {tokenizer.vocab_size - 1}"
        ):
            call(bad)


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"character 2 is the lone surrogate U\+D800"):
        tokenizer.encode("ab\ud800cd")


def test_threads_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    texts = list(TEXTS.values()) * 5
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_info_is_what_a_remote_client_needs(tokenizer: Tokenizer) -> None:
    info = tokenizer.info()
    assert (info.bos_token, info.eos_token, info.pad_token) == ("<s>", "</s>", "</s>")
    assert (info.vocab_size, info.add_bos_token) == (tokenizer.vocab_size, tokenizer.adds_bos)
    assert info.tokenizer_class == type(tokenizer).__name__
    assert tokenizer.encode(info.eos_token or "", add_special_tokens=False) == [tokenizer.eos_id]


def test_chatting_without_a_template_says_how_to_give_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is None
    with pytest.raises(InvalidRequest, match="--chat-template") as caught:
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"


def test_the_tokenizer_package_does_not_import_torch() -> None:
    code = "import sys, polyserve.tokenizer.load, polyserve.tokenizer.detokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
