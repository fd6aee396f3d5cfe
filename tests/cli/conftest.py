"""One tiny model for the tests of the commands."""

from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")
