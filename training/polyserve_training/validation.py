"""Loss by language on rows that are not trained on: the first ones of each stream, always the same.

bits per byte   loss / ln 2, times tokens per byte of the whole stream: comparable between tokenizers
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from polyserve.model.decoder import Decoder
from polyserve_training.data.packing import TextRows
from polyserve_training.trainer import token_losses


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    loss: float  # nats per token
    bits_per_byte: float
    tokens: int


def validate(model: Decoder, streams: Mapping[str, TextRows], *, rows: int) -> dict[str, ValidationLoss]:
    """By stream."""
    found: dict[str, ValidationLoss] = {}
    with torch.no_grad():
        for name, text in streams.items():
            total, count = 0.0, 0
            for row in range(min(rows, text.num_rows)):
                part = text.row(row)
                total += float(token_losses(model, part).double().sum())
                count += part.num_valid
            loss = total / max(count, 1)
            bits_per_byte = loss / math.log(2) * text.num_tokens / text.stream.entry.num_bytes
            found[name] = ValidationLoss(loss, bits_per_byte, count)
    return found
