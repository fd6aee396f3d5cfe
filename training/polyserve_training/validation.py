"""Loss by language on rows that are not trained on: the first ones of each stream, always the same.

bits per byte   loss / ln 2, times tokens per byte of the whole stream: comparable between tokenizers
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from polyserve.model.decoder import Decoder
from polyserve_training.data.packing import TextRows
from polyserve_training.parallel import ALONE, Processes
from polyserve_training.trainer import token_losses


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    loss: float  # nats per token
    bits_per_byte: float
    tokens: int


def validate(
    model: Decoder, streams: Mapping[str, TextRows], *, rows: int, processes: Processes = ALONE
) -> dict[str, ValidationLoss]:
    """By stream. Processes share the rows, and each computes as many, so that all of them take part in each."""
    found: dict[str, ValidationLoss] = {}
    with torch.no_grad():
        for name, text in streams.items():
            total, count, num_rows = 0.0, 0.0, min(rows, text.num_rows)
            for first in range(0, num_rows, processes.data):
                row = first + processes.data_rank
                part = text.row(min(row, num_rows - 1))
                losses = token_losses(model, part, group=processes.tensor_group)
                if row < num_rows:
                    total += float(losses.double().sum())
                    count += part.num_valid
            total, count = (processes.total(number) / processes.tensor for number in (total, count))
            loss = total / max(count, 1)
            bits_per_byte = loss / math.log(2) * text.num_tokens / text.stream.entry.num_bytes
            found[name] = ValidationLoss(loss, bits_per_byte, int(count))
    return found
