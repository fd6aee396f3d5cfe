"""The committed code of the protocol is what the pinned compiler makes of the proto file."""

from pathlib import Path

import pytest

from polyserve_proto import generate


def test_the_committed_code_is_current() -> None:
    assert generate.outdated() == []


def test_a_changed_proto_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "polyserve_proto" / "v1"
    copy.mkdir(parents=True)
    committed = generate.ROOT / generate.PROTO.parent
    for file in committed.glob("polyserve*"):
        (copy / file.name).write_bytes(file.read_bytes())
    proto = copy / generate.PROTO.name
    proto.write_text(proto.read_text().replace("string system_fingerprint = 4;", "string fingerprint = 4;"))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert [path.name for path in generate.outdated()] == ["polyserve_pb2.py", "polyserve_pb2.pyi"]
