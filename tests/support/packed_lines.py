"""Lines of tokens that a trainer learns from, without a data set: of some only the last ones count."""

import numpy as np

from polyserve_training.data.packing import IGNORED, Packed


def line(length: int, valid: int, seed: int) -> Packed:
    """One sequence, of which the last `valid` tokens are learned from."""
    ids = np.random.default_rng(seed).integers(3, 300, length + 1)
    targets = ids[1:].copy()
    targets[: length - valid] = IGNORED
    return Packed(ids[:-1], np.arange(length), np.array([0, length], dtype=np.int32), targets)


LINES = [line(30, 30, 0), line(40, 3, 1), line(5, 1, 2), line(25, 0, 3)]
