"""What the engine was computing when it died: the ids of a step's requests, in a file that outlives the process.

The engine writes them before the step, when they are others than before; the kernel keeps what a killed process wrote.
A message would come too late, since the step that kills the engine may be a request's first.

File   length of the rest (4 bytes, little endian), then a msgpack list of strings; rewritten in place
"""

import os
from pathlib import Path

import msgspec

FILE_NAME = "last_step"
_LENGTH_BYTES = 4


class StepRecorder:
    """The engine's end."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / FILE_NAME, os.O_CREAT | os.O_WRONLY, 0o600)
        self._last: set[str] = set()

    def record(self, request_ids: set[str]) -> None:
        """Remember the requests of the step that begins."""
        if request_ids == self._last:
            return
        self._last = request_ids
        data = msgspec.msgpack.encode(sorted(request_ids))
        os.pwrite(self._file, len(data).to_bytes(_LENGTH_BYTES, "little") + data, 0)


def last_step(folder: Path) -> set[str]:
    """The requests of the last step that began; none if there was no step, or the engine died while writing."""
    try:
        data = (folder / FILE_NAME).read_bytes()
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        return set(msgspec.msgpack.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + length], type=list[str]))
    except (OSError, msgspec.DecodeError):
        return set()
