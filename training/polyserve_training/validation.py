"""Loss by language on rows that are not trained on: the first ones of each stream, always the same.

bits per byte   loss / ln 2, times tokens per byte of the whole stream: comparable between tokenizers
conversations   as in training the loss is that of answers alone; that of the tokens that end them is also given by
                itself, since a model that learned everything else would not stop
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve.model.decoder import Decoder
from polyserve_training.data.chat_rows import ChatRows
from polyserve_training.data.packing import Packed, RowSource
from polyserve_training.parallel import ALONE, Processes
from polyserve_training.trainer import token_losses


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    loss: float  # nats per token
    bits_per_byte: float
    tokens: int
    stop_loss: float | None = None  # nats per token that ends an answer


def validate(
    model: Decoder, streams: Mapping[str, RowSource], *, rows: int, processes: Processes = ALONE
) -> dict[str, ValidationLoss]:
    """By stream. Processes share the rows, and each computes as many, so that all of them take part in each."""
    found: dict[str, ValidationLoss] = {}
    with torch.no_grad():
        for name, source in streams.items():
            sums, num_rows = torch.zeros(4, dtype=torch.float64), min(rows, source.num_rows)
            for first in range(0, num_rows, processes.data):
                row = first + processes.data_rank
                part = source.row(min(row, num_rows - 1))
                losses = token_losses(model, part, group=processes.tensor_group)
                if row < num_rows:
                    sums += _sums(losses, part)
            total, count, stops, num_stops = (processes.total(float(x)) / processes.tensor for x in sums)
            loss = total / max(count, 1)
            stop_loss = stops / max(num_stops, 1) if isinstance(source, ChatRows) else None
            found[name] = ValidationLoss(loss, loss / math.log(2) * source.tokens_per_byte, int(count), stop_loss)
    return found


def _sums(losses: Tensor, part: Packed) -> Tensor:
    """[4]: the loss and number of all tokens of a row, and of those that end its sequences."""
    ends = losses[torch.from_numpy(part.cu_seqlens[1:] - 1).to(losses.device)]
    return torch.tensor(
        [float(losses.double().sum()), part.num_valid, float(ends.double().sum()), len(ends)], dtype=torch.float64
    )
