"""The text of one sequence: deltas, stop strings, log-probability entries, for every way text can fall into tokens."""

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.output import SequenceText, TextDelta, prompt_logprob_entries
from polyserve.request import FinishReason, SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams
from support.piece_tokenizer import PieceTokenizer

SCRIPTS = "ab ab\n,。你好世界हिन्दीไทยعربيрус한국😀👩‍👩‍👧é\u0301"  # 1 to 4 bytes a character, some of them joined


def output(
    *token_ids: int,
    finish_reason: FinishReason | None = None,
    logprobs: list[TokenLogprob] | None = None,
    **fields: int,
) -> SequenceOutput:
    return SequenceOutput("r", 0, list(token_ids), finish_reason=finish_reason, logprobs=logprobs, **fields)


def deltas_of(pieces: list[bytes], params: SamplingParams, *, sizes: list[int] | None = None) -> list[TextDelta]:
    """The deltas of an answer of these pieces, the i-th output bringing sizes[i] of them (default 1), until it ends."""
    text = SequenceText(PieceTokenizer(pieces), params)
    deltas, begin = [], 0
    for size in sizes or [1] * len(pieces):
        end = min(begin + size, len(pieces))
        reason: FinishReason | None = "length" if end == len(pieces) else None
        deltas.append(text.push(output(*range(begin, end), finish_reason=reason)))
        begin = end
        if text.finished:
            break
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def cut(data: bytes, stops: list[bytes], *, include: bool) -> tuple[bytes, bytes | None]:
    """What `polyserve.output` promises, without streaming: the text up to the first stop string to end, and it."""
    for end in range(1, len(data) + 1):
        ending = [stop for stop in stops if data[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return data[: end if include else end - len(stop)], stop
    return data, None


def sendable(data: bytes, stops: list[bytes]) -> str:
    """The longest text that no later byte can change: no start of a stop string at its end, no unfinished character."""
    held = max((k for stop in stops for k in range(len(stop)) if data.endswith(stop[:k])), default=0)
    text = data[: len(data) - held]
    unfinished = max(k for k in range(min(4, len(text) + 1)) if k == 0 or is_unfinished(text[-k:]))
    return text[: len(text) - unfinished].decode("utf-8", "replace")


def is_unfinished(data: bytes) -> bool:
    """Whether more bytes could make one character of it."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """Pieces that cut a text of many scripts anywhere, with stray bytes, and stop strings that are likely in it."""
    text = draw(st.text(alphabet=SCRIPTS, min_size=1, max_size=30))
    data = bytearray(text.encode())
    for position in draw(st.lists(st.integers(0, len(data)), max_size=2)):
        data[position:position] = draw(st.sampled_from([b"\xff", b"\xe4\xbd", b"\x80"]))
    cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=len(data)))})
    pieces = [bytes(data[begin:end]) for begin, end in pairwise(cuts)]
    stops = []
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(text) - 1))
        stop = text[begin : begin + draw(st.integers(1, 5))] + draw(st.sampled_from(["", "", "a", "界"]))
        stops.append(stop)
    return pieces, stops


@given(answers(), st.booleans(), st.lists(st.integers(1, 4), min_size=1))
def test_streaming_gives_the_text_that_cutting_the_whole_gives(
    answer: tuple[list[bytes], list[str]], include: bool, sizes: list[int]
) -> None:
    pieces, stops = answer
    sizes = sizes + [3] * len(pieces)
    deltas = deltas_of(pieces, SamplingParams(stop=stops, include_stop_str_in_output=include), sizes=sizes)
    text, stop = cut(b"".join(pieces), [stop.encode() for stop in stops], include=include)
    assert text_of(deltas) == text.decode("utf-8", "replace")
    assert deltas[-1].finish_reason == ("length" if stop is None else "stop")
    assert deltas[-1].stop_reason == (None if stop is None else stop.decode())


@given(answers())
def test_everything_is_sent_that_can_not_change_any_more_and_nothing_else(
    answer: tuple[list[bytes], list[str]],
) -> None:
    pieces, stops = answer
    encoded = [stop.encode() for stop in stops]
    deltas = deltas_of(pieces, SamplingParams(stop=stops))
    for count in range(1, len(deltas)):
        assert text_of(deltas[:count]) == sendable(b"".join(pieces[:count]), encoded)


@given(answers())
def test_the_tokens_end_with_the_one_that_completed_the_stop_string(answer: tuple[list[bytes], list[str]]) -> None:
    pieces, stops = answer
    params = SamplingParams(stop=stops, include_stop_str_in_output=True)
    one_by_one = deltas_of(pieces, params)
    at_once = deltas_of(pieces, params, sizes=[len(pieces)])
    token_ids = [token_id for delta in one_by_one for token_id in delta.token_ids]
    assert at_once[0].token_ids == token_ids
    text, stop = cut(b"".join(pieces), [stop.encode() for stop in stops], include=True)
    if stop is not None:
        assert len(b"".join(pieces[: len(token_ids) - 1])) < len(text) <= len(b"".join(pieces[: len(token_ids)]))


@given(answers(), st.integers(0, 10))
def test_the_text_of_the_first_min_tokens_tokens_is_sent_whole(
    answer: tuple[list[bytes], list[str]], min_tokens: int
) -> None:
    pieces, stops = answer
    params = SamplingParams(stop=stops, min_tokens=min_tokens, max_tokens=None)
    first, rest = b"".join(pieces[:min_tokens]), b"".join(pieces[min_tokens:])
    text, _ = cut(rest, [stop.encode() for stop in stops], include=False)
    assert text_of(deltas_of(pieces, params)) == (first + text).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", ["。\n", "停止", "สวัสดี", "नमस्ते", "👩‍👩‍👧", "\r\n\r\n", "</s>", "안녕"])
def test_a_stop_string_is_found_at_every_split_of_its_bytes(stop: str) -> None:
    data = f"a{stop}b".encode()
    for split in range(1, len(data)):
        deltas = deltas_of([data[:split], data[split:]], SamplingParams(stop=[stop]))
        assert text_of(deltas) == "a"
        assert deltas[-1].stop_reason == stop


@pytest.mark.parametrize(("data", "stop"), [(b"aaab", "aab"), (b"ababac", "abac"), (b"xaxaxxy", "xaxxy")])
def test_a_stop_string_is_found_behind_a_false_start_of_itself(data: bytes, stop: str) -> None:
    deltas = deltas_of([data[i : i + 1] for i in range(len(data))], SamplingParams(stop=[stop]))
    assert text_of(deltas).encode() == data.removesuffix(stop.encode())
    assert deltas[-1].stop_reason == stop


def test_what_looked_like_a_stop_string_is_sent_once_it_is_none() -> None:
    deltas = deltas_of([b"one ST", b"O", b"RE two"], SamplingParams(stop=["STOP"]))
    assert [delta.text for delta in deltas] == ["one ", "", "STORE two"]


def test_what_looked_like_a_stop_string_is_sent_at_the_end() -> None:
    deltas = deltas_of([b"one ", b"STO"], SamplingParams(stop=["STOP"]))
    assert [delta.text for delta in deltas] == ["one ", "STO"]
    assert deltas[-1].finish_reason == "length"


def test_half_a_character_is_sent_as_a_replacement_at_the_end() -> None:
    assert [delta.text for delta in deltas_of([b"a\xe4\xbd", b"\xa0\xe5"], SamplingParams())] == ["a", "你\ufffd"]


def test_the_stop_string_that_ends_first_wins_and_of_two_that_end_together_the_longer() -> None:
    params = SamplingParams(stop=["bcd", "b", "ab"])
    delta = deltas_of([b"xabcd"], params)[0]
    assert (delta.text, delta.stop_reason) == ("x", "ab")


def test_only_a_stop_string_that_the_engine_does_not_know_asks_for_an_abort() -> None:
    tokenizer = PieceTokenizer([b"a", b"!"])
    by_text = SequenceText(tokenizer, SamplingParams(stop=["!"])).push(output(0, 1))
    by_both = SequenceText(tokenizer, SamplingParams(stop=["!"])).push(output(0, 1, finish_reason="length"))
    assert (by_text.stopped, by_text.finish_reason) == (True, "stop")
    assert (by_both.stopped, by_both.finish_reason) == (False, "stop")


def test_the_token_that_ends_an_answer_is_reported_without_its_text() -> None:
    delta = SequenceText(PieceTokenizer([b"a", b"END"]), SamplingParams()).push(
        output(0, 1, finish_reason="stop", stop_reason=1)
    )
    assert (delta.text, delta.token_ids, delta.stop_reason, delta.stopped) == ("a", [0, 1], 1, False)


def test_the_text_of_an_ending_token_completes_no_stop_string() -> None:
    text = SequenceText(PieceTokenizer([b"a", b"b"]), SamplingParams(stop=["ab"]))
    delta = text.push(output(0, 1, finish_reason="stop"))
    assert (delta.text, delta.stop_reason) == ("a", None)


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a<tool>b")])
def test_special_tokens_are_in_the_text_only_if_they_are_not_skipped(skip: bool, text: str) -> None:
    tokenizer = PieceTokenizer([b"a", b"<tool>", b"b"], special_ids=[1])
    delta = SequenceText(tokenizer, SamplingParams(skip_special_tokens=skip)).push(output(0, 1, 2))
    assert (delta.text, delta.token_ids) == (text, [0, 1, 2])


def test_log_probability_entries_carry_the_exact_bytes_of_half_characters() -> None:
    tokenizer = PieceTokenizer([b"\xe4\xbd", b"\xa0", "é".encode()])
    positions = [TokenLogprob(0, -0.5, [0, 2], [-0.5, -1.0]), TokenLogprob(1, -2.0, [2, 0], [-0.1, -0.4])]
    delta = SequenceText(tokenizer, SamplingParams(logprobs=2)).push(output(0, 1, logprobs=positions))
    assert delta.text == "你"
    assert delta.logprobs is not None
    assert b"".join(entry.bytes for entry in delta.logprobs) == delta.text.encode()
    assert [entry.token for entry in delta.logprobs] == ["\ufffd", "\ufffd"]
    assert delta.logprobs[1].top == [("é", 2, "é".encode(), -0.1), ("\ufffd", 0, b"\xe4\xbd", -0.4)]


def test_log_probability_entries_behind_a_stop_string_are_dropped_with_their_tokens() -> None:
    tokenizer = PieceTokenizer([b"a", b"!", b"b"])
    positions = [TokenLogprob(token_id, -math.log(3)) for token_id in (0, 1, 2)]
    delta = SequenceText(tokenizer, SamplingParams(stop=["!"], logprobs=0)).push(output(0, 1, 2, logprobs=positions))
    assert delta.token_ids == [0, 1]
    assert delta.logprobs is not None
    assert [entry.token_id for entry in delta.logprobs] == [0, 1]


def test_nothing_predicts_the_first_token_of_a_prompt() -> None:
    entries = prompt_logprob_entries(PieceTokenizer([b"a", b"b"]), [None, TokenLogprob(1, -1.0)])
    assert entries is not None
    assert entries[0] is None
    assert entries[1] is not None
    assert (entries[1].token, entries[1].logprob) == ("b", -1.0)


def test_many_long_stop_strings_that_almost_match_cost_time_linear_in_the_text() -> None:
    stops = ["a" * 1000 + chr(ord("b") + i) for i in range(20)]
    pieces = [b"a" * 4] * 1500
    began = time.process_time()
    assert text_of(deltas_of(pieces, SamplingParams(stop=stops))) == "a" * 6000
    assert time.process_time() - began < 2.0  # linear takes a tenth of this, quadratic a hundred times it
