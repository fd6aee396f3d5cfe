"""The model under the chaos: a tiny one in the short forms, SmolLM2 in the long ones (`make chaos`)."""

from pathlib import Path

import pytest

from support.checkpoints import Sizes, make_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama", sizes=Sizes(max_len=1024))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    """SmolLM2 for a test that is marked slow."""
    slow = request.node.get_closest_marker("slow") is not None
    file: Path = request.getfixturevalue("smollm2_file" if slow else "tiny")
    return file
