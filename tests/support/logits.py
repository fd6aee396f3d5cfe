"""Logits of a Decoder, and of its `transformers` reference, for a few sequences of token ids."""

import itertools

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyserve.model.decoder import Decoder
from polyserve.model.forward_context import PackedContext, PagedContext
from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache

BLOCK_SIZE = 16


def random_ids(*lengths: int, vocab_size: int = 512, seed: int = 0) -> list[list[int]]:
    """Sequences of these lengths; ids below 3 are left to special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def head_logits(model: Decoder, hidden: Tensor) -> Tensor:
    """[T, V] float32"""
    logits = ops.matmul(hidden, model.head_weight, out_dtype=torch.float32)
    cap = model.config.final_soft_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def packed_logits(model: Decoder, sequences: list[list[int]]) -> list[Tensor]:
    """[length, V] float32 for each sequence, all computed in one packed call."""
    lengths = [len(sequence) for sequence in sequences]
    token_ids = torch.tensor(list(itertools.chain(*sequences)))
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    with torch.inference_mode():
        hidden = model(token_ids, positions, PackedContext(cu_seqlens))
        return list(head_logits(model, hidden).split(lengths))


def served_logits(model: Decoder, sequences: list[list[int]], steps: list[list[tuple[int, int]]]) -> list[Tensor]:
    """[length, V] float32 for each sequence, computed through a paged cache.

    A step lists (sequence, number of its next tokens); those with one token come first.
    """
    config = model.config
    num_blocks = max(-(-len(sequence) // BLOCK_SIZE) for sequence in sequences)  # of one sequence
    shape = (num_blocks * len(sequences), BLOCK_SIZE, config.num_kv_heads, config.head_size)
    caches = [BlockCache(*torch.zeros(2, *shape, dtype=model.dtype)) for _ in range(config.num_layers)]
    blocks = torch.arange(shape[0], dtype=torch.int32).flip(0).view(len(sequences), num_blocks)  # they lie in any order
    done = [0] * len(sequences)
    rows: list[list[Tensor]] = [[] for _ in sequences]
    for step in steps:
        spans = [(number, torch.arange(done[number], done[number] + count)) for number, count in step]
        slots = [blocks[number][span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE for number, span in spans]
        counts = [count for _, count in step]
        context = PagedContext(
            caches=caches,
            slot_mapping=torch.cat(slots).long(),
            block_tables=blocks[[number for number, _ in step]],
            seq_lens=torch.tensor([done[number] + count for number, count in step], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
            num_decodes=counts.count(1),
        )
        token_ids = torch.cat([torch.tensor(sequences[number])[span] for number, span in spans])
        with torch.inference_mode():
            logits = head_logits(model, model(token_ids, torch.cat([span for _, span in spans]), context))
        for (number, count), part in zip(step, logits.split(counts), strict=True):
            done[number] += count
            rows[number].append(part)
    return [torch.cat(parts) for parts in rows]


def reference_logits(model: PreTrainedModel, sequences: list[list[int]]) -> list[Tensor]:
    """[length, V] float32 for each sequence, each computed alone."""
    with torch.inference_mode():
        return [model(torch.tensor([sequence])).logits[0].float() for sequence in sequences]


def greedy_tokens(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """What the reference continues a prompt with."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits(model, [tokens])[0][-1].argmax()))
    return tokens[len(prompt) :]


def disagreements(ours: Tensor, reference: Tensor, *, tie: float = 0.01) -> list[int]:
    """Rows whose most likely token differs although the reference's two best are at least `tie` apart."""
    best = reference.topk(2).values
    decided = best[:, 0] - best[:, 1] >= tie
    return torch.nonzero(decided & (ours.argmax(-1) != reference.argmax(-1))).flatten().tolist()
