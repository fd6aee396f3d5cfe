"""Checkpoints in safetensors: one file, or shards with an index, over a memory map.

The package checks a file as it opens it. It would map the file as memory that could all be written to, which systems
refuse for a file that is larger than they are; so tensors are views of a map that reserves none.
Layout   length of the header u64 | header, JSON: name -> dtype, shape, data_offsets behind the header | data
Source   https://github.com/huggingface/safetensors#format
"""

import json
import mmap
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyserve.errors import ModelLoadError

FILE_NAME = "model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
MAX_ELEMENTS = 2**62
# Python has the name from 3.13 on; the number is that of Linux.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class SafetensorsFile:
    """A MappedFile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="np"), path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, dict[str, Any]] = json.loads(file.read(length))
                flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                self._map = mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path}: damaged, truncated or not a safetensors file: {error}") from error
        header.pop("__metadata__", None)
        self._header, self._data = header, 8 + length

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, entry in self._header.items()}

    def tensor(self, name: str) -> Tensor:
        entry = self._header[name]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ModelLoadError(f"{self._path}: tensor {name} is {entry['dtype']}, which is not supported")
        begin, end = entry["data_offsets"]
        if begin == end:
            if prod(size or 1 for size in entry["shape"]) > MAX_ELEMENTS:  # no stride could count it
                raise ModelLoadError(f"{self._path}: tensor {name} has the impossible shape {entry['shape']}")
            return torch.empty(entry["shape"], dtype=dtype)
        bytes_of_it = torch.frombuffer(self._map, dtype=torch.uint8, count=end - begin, offset=self._data + begin)
        return bytes_of_it.view(dtype).view(entry["shape"])
