"""Log-probabilities of given tokens, in one pass over the vocabulary: raw logit - log-sum-exp of the raw logits.

Spec    reference/cross_entropy.py
Memory  rows go MAX_ROWS at a time at most, of which there are 8 bytes a part of the log-sum-exp and, with a top list,
        16 bytes a group of ids: it does not grow with tokens times vocabulary
Traffic the weight once for MAX_ROWS rows, and for each row what `vocab_best.py` reads for its best N
Bits    logits and log-sum-exps are those of `head_topk`
Shapes  hidden [T, C]   weight [V, C]   targets [T]   logprobs [T]   top lists [T, N]
"""

import torch
import triton
from torch import Tensor

from polyserve_kernels.triton.head import Head, head_of
from polyserve_kernels.triton.vocab_best import best_keys, unpack
from polyserve_kernels.triton.vocab_fold import fold
from polyserve_kernels.triton.vocab_scan import MAX_ROWS, scan


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, num_top: int, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    num_chunks = max(1, triton.cdiv(hidden.shape[0], MAX_ROWS))
    logprobs, top_ids, top_logprobs = zip(
        *(
            _scores(head_of(rows, weight, soft_cap), wanted, num_top)
            for rows, wanted in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True)
        ),
        strict=True,
    )
    return torch.cat(logprobs), torch.cat(top_ids), torch.cat(top_logprobs)


def _scores(head: Head, targets: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    kept, _, logits = scan(head, None, raw_k=num_top, targets=targets)
    lse = fold(kept.parts)
    top_ids, top_raw = unpack(best_keys(head, None, kept.best, num_top), head.vocab_size)
    return logits - lse, top_ids, top_raw - lse[:, None]
