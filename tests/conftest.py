"""Puts `tests/` on the import path, so that tests can share builders: `from support.checkpoints import make_checkpoint`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
