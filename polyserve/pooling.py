"""Embeddings: how the final hidden states of a prompt become one vector.

last   the state of the prompt's last token, which has seen all the others
mean   the mean over the prompt's tokens
Both are the decoder's output after its last norm. The engine gives the vector as it is; who asks for an embedding gets
it at unit length, as OpenAI's are, unless he wants the plain one.
"""

import math
from collections.abc import Sequence
from typing import Literal

Pooling = Literal["last", "mean"]


def unit_length(vector: Sequence[float]) -> list[float]:
    """The vector's direction; one of zeros alone stays as it is."""
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]
