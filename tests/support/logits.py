"""Logits of a Decoder, and of its `transformers` reference, for a few sequences of token ids."""

import itertools

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyserve.model.decoder import Decoder
from polyserve.model.forward_context import PackedContext, PagedContext
from polyserve_kernels import ops

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


def served_logits(model: Decoder, sequence: list[int], *, chunks: list[int]) -> Tensor:
    """[length, V] float32, computed through a paged cache in chunks of these lengths."""
    num_blocks = -(-len(sequence) // BLOCK_SIZE)
    config = model.config
    shape = (num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_size)
    k_caches = [torch.zeros(shape, dtype=model.dtype) for _ in range(config.num_layers)]
    v_caches = [torch.zeros(shape, dtype=model.dtype) for _ in range(config.num_layers)]
    block_tables = torch.arange(num_blocks - 1, -1, -1, dtype=torch.int32)[None]  # blocks lie in any order
    parts: list[Tensor] = []
    start = 0
    for length in chunks:
        positions = torch.arange(start, start + length)
        slots = block_tables[0][positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        context = PagedContext(
            k_caches=k_caches,
            v_caches=v_caches,
            slot_mapping=slots.long(),
            block_tables=block_tables,
            seq_lens=torch.tensor([start + length], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, length], dtype=torch.int32),
            num_decodes=1 if length == 1 else 0,
        )
        with torch.inference_mode():
            hidden = model(torch.tensor(sequence[start : start + length]), positions, context)
            parts.append(head_logits(model, hidden))
        start += length
    assert start == len(sequence)
    return torch.cat(parts)


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
