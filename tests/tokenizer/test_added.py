"""Added tokens are found in a text wherever they stand, the longest first."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from polyserve.tokenizer.added import AddedToken, AddedTokens


def split(contents: list[str], text: str) -> list[str | int]:
    return list(AddedTokens([AddedToken(content, i) for i, content in enumerate(contents)]).split(text))


def test_a_text_is_cut_at_added_tokens() -> None:
    assert split(["<a>", "<b>"], "x<a>y<b><a>") == ["x", 0, "y", 1, 0]


def test_the_longest_token_at_a_place_wins() -> None:
    assert split(["<", "<a", "<a>"], "<a><a<") == [2, 1, 0]


def test_an_earlier_token_wins_over_a_longer_later_one() -> None:
    assert split(["ab", "bcd"], "abcd") == [0, "cd"]


def test_nothing_is_cut_without_added_tokens() -> None:
    assert split([], "text") == ["text"]
    assert split(["<a>"], "") == []
    assert split([""], "text") == ["text"]


def test_characters_that_mean_something_to_regular_expressions_are_themselves() -> None:
    contents = ["[", "]", "^", "-", "\\", ".", "a-z", "[^]"]
    assert split(contents, "b[^]-m.^\\") == ["b", 7, 3, "m", 5, 2, 4]


def test_white_space_beside_a_token_goes_with_it_if_it_says_so() -> None:
    tokens = [AddedToken("<l>", 0, lstrip=True), AddedToken("<r>", 1, rstrip=True), AddedToken("<n>", 2)]
    cut = AddedTokens(tokens).split
    assert list(cut("a \n<l> b")) == ["a", 0, " b"]
    assert list(cut("a <r>\t b")) == ["a ", 1, "b"]
    assert list(cut("a <n> b")) == ["a ", 2, " b"]
    assert list(cut(" <l><r> ")) == [0, 1]
    assert list(cut("<r>  <l>")) == [1, 0]


@settings(max_examples=300, deadline=None)
@given(
    contents=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
    text=st.text("ab<c", max_size=30),
)
def test_cutting_is_what_a_regular_expression_finds(contents: list[str], text: str) -> None:
    longest_first = sorted(contents, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    expected = [contents.index(part) if i % 2 else part for i, part in enumerate(parts) if part]
    assert split(contents, text) == expected
