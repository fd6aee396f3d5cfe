"""Writes the Python code of `v1/polyserve.proto`, which is committed, or checks that it is current.

    python -m polyserve_proto.generate           write polyserve_pb2.py, polyserve_pb2.pyi and polyserve_pb2_grpc.py
    python -m polyserve_proto.generate --check   write nothing; name the files that differ and exit with 1

Needs grpcio-tools, at the version that `pyproject.toml` pins: another compiler writes other bytes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent  # what import paths and proto paths are relative to
PROTO = Path("polyserve_proto/v1/polyserve.proto")
GENERATED = tuple(PROTO.with_name(f"polyserve_{ending}") for ending in ("pb2.py", "pb2.pyi", "pb2_grpc.py"))


def generate(folder: Path) -> None:
    """Write the generated files under `folder`. Raises RuntimeError if the compiler refuses the proto file."""
    from grpc_tools import protoc

    written = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"--proto_path={ROOT}", *written, str(PROTO)]) != 0:
        raise RuntimeError(f"protoc refused {ROOT / PROTO}")


def outdated() -> list[Path]:
    """The committed files that differ from what the compiler writes now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [path for path in GENERATED if not _same(Path(folder) / path, ROOT / path)]


def _same(fresh: Path, committed: Path) -> bool:
    return committed.exists() and fresh.read_bytes() == committed.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polyserve_proto.generate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a committed file is outdated"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    paths = outdated()
    for path in paths:
        sys.stderr.write(f"{ROOT / path} is outdated: run python -m polyserve_proto.generate\n")
    return 1 if paths else 0


if __name__ == "__main__":
    sys.exit(main())
