"""Damage a checkpoint in many ways and load each: `python -m support.damaged_files FILE KIND COUNT FIRST_SEED`.

What may happen to a damaged file is a model (damage in the weights is not to be seen), or ModelLoadError with one line.
Anything else, a traceback, a signal, or memory beyond ALLOWED_BYTES, ends this process, and with it the test: limits of
the operating system hold for a process. The last line of output says how many loaded and how many were refused.
"""

import json
import random
import resource
import struct
import sys
from pathlib import Path

import torch

from polyserve.errors import ModelLoadError
from polyserve.model.weights.load import load_model
from polyserve.tokenizer.load import load_tokenizer

ALLOWED_BYTES = 512 * 2**20
MAX_MESSAGE = 2000  # characters
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WRONG_VALUES = (None, True, -1, 0, 2**63, 2**64, 1e308, "x", "", [], {}, [[0]], [-1, 2], ["a"], [2**63, 2**63])


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """One to three changes, most of them where the file describes itself."""
    changed = bytearray(content)
    header_bytes = min(len(content), 20_000 if kind == "gguf" else 8 + struct.unpack_from("<Q", content)[0])
    if kind == "safetensors" and rng.random() < 0.5:
        return _with_wrong_header(content, rng)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(header_bytes)
        match rng.randrange(7):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.randrange(256)
            case 2:
                struct.pack_into("<Q", changed, min(place, len(changed) - 8), rng.choice(EXTREMES))
            case 3:
                struct.pack_into("<I", changed, min(place, len(changed) - 4), rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del changed[place : place + rng.randint(1, 64)]
            case 5:
                changed[place:place] = rng.randbytes(rng.randint(1, 64))
            case 6:
                del changed[rng.randrange(len(changed)) :]
        header_bytes = max(1, min(header_bytes, len(changed)))
        if len(changed) < 8:
            break
    return bytes(changed)


def _with_wrong_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is JSON all the same: entries that overlap, overflow, or are of another type."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    other = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match rng.randrange(8):
        case 0:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 1:
            entry["data_offsets"][rng.randrange(2)] = rng.choice(EXTREMES)
        case 2:
            entry["shape"] = [rng.choice(EXTREMES) for _ in range(rng.randint(0, 5))]
        case 3:
            entry["dtype"] = rng.choice(["F64", "F4", "I64", "BOOL", "F8_E4M3", "C64", "", "f32"])
        case 4:
            header[name] = rng.choice(WRONG_VALUES)
        case 5:
            entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(WRONG_VALUES)
        case 6:
            header["__metadata__"] = rng.choice(WRONG_VALUES)
        case 7:
            del entry[rng.choice(["dtype", "shape", "data_offsets"])]
    raw = json.dumps(header).encode()
    raw += b" " * rng.choice([0, 0, 0, 8, 100_000])
    return struct.pack("<Q", len(raw)) + raw + content[8 + length :]


def main(file: Path, kind: str, count: int, first_seed: int) -> None:
    original = file.read_bytes()
    load_model(file if kind == "gguf" else file.parent, dtype=torch.float32)  # whatever loading imports is here now
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = num_pages * resource.getpagesize() + ALLOWED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    path = file if kind == "gguf" else file.parent
    loaded = refused = 0
    for seed in range(first_seed, first_seed + count):
        print(f"seed {seed}", file=sys.stderr, flush=True)
        # In a new file: writing where a map of the last one may still be would take its pages away.
        file.unlink()
        file.write_bytes(damaged(original, kind, random.Random(seed)))
        try:
            if kind == "gguf":
                load_tokenizer(path)
            load_model(path, dtype=torch.float32)
            loaded += 1
        except ModelLoadError as error:
            if "\n" in error.message or len(error.message) > MAX_MESSAGE:
                raise SystemExit(f"no clear line: {error.message[: 2 * MAX_MESSAGE]!r}") from error
            refused += 1
    file.write_bytes(original)
    print(json.dumps({"loaded": loaded, "refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
