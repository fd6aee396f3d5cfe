"""`python -m fuzz TARGET [options of libFuzzer]`: search for an input that breaks a promise, guided by coverage.

`make fuzz` runs each target for ten minutes. A finding is written to crash-*, which `python -m fuzz TARGET crash-...`
runs alone. Headers are searched from small valid files on.
"""

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["polyserve", "fuzz"], enable_loader_override=False):
    from fuzz.targets import MAX_FILE_BYTES, TARGETS


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with."""
    if target == "safetensors_header":
        header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
        header |= {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}
        raw = json.dumps(header).encode()
        return [b"\0" + raw, b"\1" + struct.pack("<Q", len(raw)) + raw + bytes(32), b"\2" + bytes(range(32))]
    if target == "gguf_header":
        from support.checkpoints import make_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            paths = [make_checkpoint(Path(folder) / name, name, format="gguf-q4_0") for name in ("llama", "gpt2")]
            return [path.read_bytes()[:MAX_FILE_BYTES] for path in paths]
    return ["aba東京👍".encode("utf-16-le"), bytes(range(64))]


def main() -> None:
    target, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        places = [] if any(not option.startswith("-") for option in options) else [corpus]
        atheris.Setup([sys.argv[0], f"-max_len={MAX_FILE_BYTES}", "-timeout=60", *options, *places], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
