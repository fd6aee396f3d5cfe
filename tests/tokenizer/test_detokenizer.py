"""Streaming: however a sequence of tokens is cut, its parts join to the text of the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.detokenizer import Detokenizer
from support.piece_tokenizer import PieceTokenizer

SCRIPTS = {
    "Thai": "กรุงเทพฯ น้ำ",
    "Arabic": "العربيّة ٣",
    "Hebrew": "שָׁלוֹם",
    "Korean": "안녕하세요",
    "Japanese": "こんにちは世界カ\u3099",
    "emoji joined by ZWJ": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "decomposed Vietnamese": "Thu\u0309 đo\u0302 Vie\u0323\u0302t",
    "outside the first plane": "𐍈𒍅\U0010fffd",
}
# Bytes that begin, continue and never are part of a character, so that random pieces are nearly text.
piece = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [b"\xe0", b"\xf0\x90", b"\x80", b"\xed\xa0", b"\xc3", b"a", b"\xf4\x90", b"\xc0\xaf", b"\xff", b"\x8d"]
    ),
    st.text(min_size=1, max_size=2).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


def streamed(tokenizer: Tokenizer, parts: list[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return [*(detokenizer.push(part) for part in parts), detokenizer.flush()]


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(piece, max_size=30), cuts=st.lists(st.booleans(), min_size=30, max_size=30))
def test_parts_join_to_the_whole_for_any_bytes_and_any_cut(pieces: list[bytes], cuts: list[bool]) -> None:
    parts: list[list[int]] = [[]]
    for token_id in range(len(pieces)):
        parts[-1].append(token_id)
        if cuts[token_id]:
            parts.append([])
    assert "".join(streamed(PieceTokenizer(pieces), parts)) == b"".join(pieces).decode("utf-8", "replace")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_cut_at_any_byte_is_whole_again_and_never_shows_a_replacement(script: str) -> None:
    data = SCRIPTS[script].encode()
    for cut in range(len(data) + 1):
        deltas = streamed(PieceTokenizer([data[:cut], data[cut:]]), [[0], [1]])
        assert "".join(deltas) == SCRIPTS[script]
        assert data.startswith(deltas[0].encode())
        assert deltas[2] == ""


def test_one_token_at_a_time_gives_the_text_of_any_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    deltas = streamed(tokenizer, [[i] for i in ids])
    assert "".join(deltas) == b"".join(tokenizer.token_bytes(i) for i in ids).decode("utf-8", "replace")
    assert "\ufffd" not in "".join(deltas)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_tokens_stream_to_the_text_of_their_bytes(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    expected = b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special_ids)
    assert "".join(streamed(tokenizer, [[i] for i in ids])) == expected.decode("utf-8", "replace")


def test_a_character_is_held_back_until_it_is_whole() -> None:
    assert streamed(PieceTokenizer([b"\xe4", b"\xbd", b"\xa0"]), [[0], [1], [2]]) == ["", "", "你", ""]


def test_a_byte_that_cannot_continue_a_character_is_replaced_at_once() -> None:
    assert streamed(PieceTokenizer([b"\xe4", b"!"]), [[0], [1]]) == ["", "\ufffd!", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    assert streamed(PieceTokenizer([b"a\xf0\x9f\x99"]), [[0]]) == ["a", "\ufffd"]


def test_special_tokens_are_left_out_unless_wanted_even_inside_a_character() -> None:
    tokenizer = PieceTokenizer([b"\xc3", b"<end>", b"\xa9"], special_ids=[1])
    assert "".join(streamed(tokenizer, [[0], [1], [2]])) == "é"
    assert "".join(streamed(tokenizer, [[0], [1], [2]], skip_special_tokens=False)) == "\ufffd<end>\ufffd"


def test_the_space_before_the_first_word_stays_in_a_stream_and_goes_from_a_whole_text(
    tiny_tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tiny_tokenizers["sentencepiece-bpe"]
    ids = tokenizer.encode("die Brücke")
    assert "".join(streamed(tokenizer, [ids])) == " die Brücke"
    assert tokenizer.decode(ids) == "die Brücke"


def test_padding_rows_of_the_embedding_add_nothing() -> None:
    assert streamed(PieceTokenizer([b"a"]), [[0, 1, 2, 0]]) == ["aa", ""]
