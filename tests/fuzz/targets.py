"""What is fuzzed: functions of bytes that raise only if something is wrong. `__main__.py` gives them to atheris.

Each states what must hold for any input whatever, so that a finding is a broken promise and not only a traceback.
"""

import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.output import SequenceText
from polyserve.request import SequenceOutput
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.detokenizer import Detokenizer
from polyserve.tools.formats import FORMATS, CallFormat
from polyserve.tools.parser import CallParser
from support.piece_tokenizer import PieceTokenizer

PIECES = [bytes([value]) for value in range(256)] + [
    "東".encode()[:2],
    "京👍".encode()[1:],
    b"ab",
    b"aba",
    b"</s>",
    b"",
]
SPECIAL = (len(PIECES) - 2,)
MAX_FILE_BYTES = 2**16
CALL_PARTS = ('"get_time"', "get_time", '"get"', "{", "}", '{"a": "}\\\\""}', "[", "]", '"', "\\n", " ", ",", "東", "")
SIZES = (0, 1, 2, 3, 4, 8, 16, 32, 64, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
DTYPES = ("F32", "BF16", "F16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64", "f32", "")


@cache
def _tokenizer() -> PieceTokenizer:
    return PieceTokenizer(PIECES, special_ids=SPECIAL)


class Choices:
    """Numbers made of the input, in order; zero when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def below(self, limit: int) -> int:
        value = self._data[self._place] if self._place < len(self._data) else 0
        self._place += 1
        return value % limit

    def rest(self) -> bytes:
        return self._data[self._place :]


def _token_ids(data: bytes) -> list[int]:
    """Two bytes a token, so that pieces of several bytes come up as well."""
    return [value % (len(PIECES) + 2) for (value,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2])]


def detokenizer(data: bytes) -> None:
    """Deltas join to the decoding of all bytes, however the tokens are cut into parts."""
    choices = Choices(data)
    skips, step = bool(choices.below(2)), choices.below(8) + 1
    token_ids = _token_ids(choices.rest())
    stream = Detokenizer(_tokenizer(), skip_special_tokens=skips)
    text = "".join(stream.push(token_ids[i : i + step]) for i in range(0, len(token_ids), step)) + stream.flush()
    kept = [i for i in token_ids if i < len(PIECES) and not (skips and i in SPECIAL)]
    assert text == b"".join(PIECES[i] for i in kept).decode("utf-8", "replace")


def stop_strings(data: bytes) -> None:
    """The text ends before the first byte at which a stop string is complete; grouping tokens changes nothing."""
    choices = Choices(data)
    num_stops, step = choices.below(4), choices.below(6) + 1
    stops = []
    for _ in range(num_stops):
        length = choices.below(5) + 1
        stops.append("".join(chr(choices.below(256) or 97) for _ in range(length)))
    token_ids = [i for i in _token_ids(choices.rest()) if i < len(PIECES)]
    include = bool(len(data) % 2)
    params = SamplingParams(stop=stops, include_stop_str_in_output=include, max_tokens=None, skip_special_tokens=False)
    text = _streamed(params, token_ids, step)
    assert text == _streamed(params, token_ids, len(token_ids) or 1)
    whole = b"".join(PIECES[i] for i in token_ids)
    ends = [(whole.find(stop.encode()) + len(stop.encode()), stop) for stop in stops if stop.encode() in whole]
    if not ends:
        assert text == whole.decode("utf-8", "replace")
        return
    first = min(end for end, _ in ends)
    longest = max((stop for end, stop in ends if end == first), key=lambda stop: len(stop.encode()))
    cut = first if include else first - len(longest.encode())
    assert text == whole[:cut].decode("utf-8", "replace")


def _streamed(params: SamplingParams, token_ids: list[int], step: int) -> str:
    stream, pieces = SequenceText(_tokenizer(), params), []
    for begin in range(0, max(len(token_ids), 1), step):
        last = begin + step >= len(token_ids)
        output = SequenceOutput("r", 0, token_ids[begin : begin + step], finish_reason="length" if last else None)
        pieces.append(stream.push(output).text)
        if stream.finished:
            break
    return "".join(pieces)


def tool_calls(data: bytes) -> None:
    """Text and calls are the same however the message was cut, and without a function's name nothing is a call."""
    choices = Choices(data)
    form = list(FORMATS.values())[choices.below(len(FORMATS))]
    step = choices.below(7) + 1
    parts = (form.begin, form.middle, form.end, form.between, form.last, form.opening, form.closing, *CALL_PARTS)
    message = "".join(parts[value % len(parts)] or chr(value) for value in choices.rest()[:40])
    whole = _calls_of(form, message, len(message) or 1)
    assert _calls_of(form, message, step) == whole
    if "get" not in message:
        assert whole[1] == {}


def _calls_of(form: CallFormat, message: str, step: int) -> tuple[str, dict[int, tuple[str, str]]]:
    """The text, and each call's name and arguments, from pieces of `step` characters."""
    parser = CallParser(form, ("get_time", "get"), lambda: "id")
    pieces = [message[begin : begin + step] for begin in range(0, len(message), step)]
    deltas = [parser.push(piece) for piece in pieces] + [parser.flush(cut=False)]
    calls: dict[int, tuple[str, str]] = {}
    for call in (call for delta in deltas for call in delta.calls):
        name, arguments = calls.get(call.index, ("", ""))
        calls[call.index] = name + (call.name or ""), arguments + call.arguments
    return "".join(delta.text for delta in deltas), calls


def gguf_header(data: bytes) -> None:
    """A file is read, with its config and its tokenizer, or refused with one line."""
    from polyserve.model.families import config_from_gguf
    from polyserve.tokenizer.gguf import load_gguf_tokenizer

    path = _file_of(data)
    for read in (config_from_gguf, load_gguf_tokenizer):
        try:
            read(read_gguf(path))
        except ModelLoadError as error:
            _check_line(error)


def safetensors_header(data: bytes) -> None:
    """Each tensor has the shape that is announced, inside the file, or the file is refused with one line."""
    from polyserve.model.weights.safetensors import SafetensorsFile

    try:
        file = SafetensorsFile(_file_of(_safetensors_of(data)))
        for name, shape in file.shapes().items():
            assert tuple(file.tensor(name).shape) == shape
    except ModelLoadError as error:
        _check_line(error)


def _safetensors_of(data: bytes) -> bytes:
    """The input as a file, or as its header, or as what chooses the values of a header that is JSON at any rate.

    Its parser is compiled elsewhere, so that coverage does not lead through it.
    """
    choices = Choices(data)
    kind = choices.below(4)
    if kind < 2:
        header = choices.rest()
        return header if kind else struct.pack("<Q", len(header)) + header + bytes(64)
    entries: dict[str, object] = {}
    for number in range(choices.below(4) + 1):
        shape = [SIZES[choices.below(len(SIZES))] for _ in range(choices.below(5))]
        offsets: list[object] = [SIZES[choices.below(len(SIZES))] for _ in range(choices.below(3) + 1)]
        entries[str(number)] = {"dtype": DTYPES[choices.below(len(DTYPES))], "shape": shape, "data_offsets": offsets}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(SIZES[choices.below(8)])


def _check_line(error: ModelLoadError) -> None:
    assert "\n" not in error.message, error.message


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="polyserve-fuzz-")


def _file_of(data: bytes) -> Path:
    """A new file each time: writing into one that is still mapped would take its pages away."""
    path = Path(_folder().name) / "input.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (detokenizer, stop_strings, tool_calls, gguf_header, safetensors_header)
}
