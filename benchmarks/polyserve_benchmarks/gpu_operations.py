"""Every operation but attention at the sizes of PolyLM-13B, beside torch and Liger.

T rows   S sequences   C channels   F width of the MLP   V vocabulary
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_benchmarks.gpu_cases import Case, Maker, Sizes, bytes_of, with_liger
from polyserve_kernels import ops
from polyserve_kernels.types import QuantizedWeight

EPS = 1e-5
NORM_FLOPS = 8  # an element; memory bounds what is not a product
ACTIVATION_FLOPS = 12
NUM_CANDIDATES = 64
NUM_TOP = 8


def cases(sizes: Sizes, device: str) -> list[Callable[[], Case]]:
    """Makers of the cases, so that only one holds memory at a time."""
    make = Maker(device)
    for_rows = (
        _matmul,
        _quantized_matmul,
        _layer_norm,
        _rms_norm,
        _bias_gelu,
        _gated_silu,
        _gated_gelu,
        _rotary,
        _rotary_write_kv,
    )
    return [
        *(partial(case, sizes, make, rows) for case in for_rows for rows in (sizes.sequences, sizes.rows)),
        *(
            partial(case, sizes, make)
            for case in (_copy_blocks, _head_topk, _head_logits, _token_logprobs, _loss, _random_uniform)
        ),
    ]


def _matmul(sizes: Sizes, make: Maker, rows: int) -> Case:
    x, w, bias = make(rows, sizes.channels), make(3 * sizes.channels, sizes.channels), make(3 * sizes.channels)
    return Case(
        name="matmul",
        configuration=f"{rows} rows, {w.shape[1]} to {w.shape[0]}",
        ours=lambda: ops.matmul(x, w, bias),
        peers={"torch": lambda: F.linear(x, w, bias)},
        num_bytes=bytes_of(x, w, bias) + 2 * rows * w.shape[0],
        flops=2 * rows * w.numel(),
    )


def _quantized_matmul(sizes: Sizes, make: Maker, rows: int) -> Case:
    x, num_outputs, group = make(rows, sizes.channels), 3 * sizes.channels, min(128, sizes.channels)
    values = make.ids(num_outputs, sizes.channels // 2, below=256).to(torch.uint8)
    scales, minimums = (make(num_outputs, sizes.channels // group) / 64 for _ in range(2))
    weight = QuantizedWeight(scheme="int4", values=values, scales=scales, minimums=minimums)
    numbers = torch.stack((values % 16, values // 16), dim=-1).view(num_outputs, -1, group)
    dense = (numbers * scales[..., None] + minimums[..., None]).view(num_outputs, -1)
    return Case(
        name="quantized_matmul",
        configuration=f"{rows} rows, {sizes.channels} to {num_outputs}, int4 in groups of {group}",
        ours=lambda: ops.quantized_matmul(x, weight),
        peers={"torch, bfloat16": lambda: F.linear(x, dense)},
        num_bytes=bytes_of(x, values, scales, minimums) + 2 * rows * num_outputs,
        flops=2 * rows * dense.numel(),
    )


def _layer_norm(sizes: Sizes, make: Maker, rows: int) -> Case:
    x, residual = make(rows, sizes.channels).requires_grad_(), make.float32(rows, sizes.channels)
    weight, bias = (make.float32(sizes.channels).requires_grad_() for _ in range(2))

    def plain() -> Tensor:
        return F.layer_norm(residual + x, weight.shape, weight, bias, EPS).to(x.dtype)

    forward = 2 * bytes_of(x) + 2 * bytes_of(residual) + bytes_of(weight, bias)
    return Case(
        name="layer_norm",
        configuration=f"{rows} rows of {sizes.channels}, residual",
        ours=lambda: ops.layer_norm(x, weight, bias, eps=EPS, residual=residual)[0],
        peers={
            "torch": plain,
            **with_liger(
                "liger_layer_norm", lambda norm: norm(residual + x, weight, bias, EPS).to(x.dtype), device=make.device
            ),
        },
        num_bytes=forward,
        flops=NORM_FLOPS * x.numel(),
        leaves=(x, weight, bias),
        both_bytes=2 * forward,
        both_flops=3 * NORM_FLOPS * x.numel(),
    )


def _rms_norm(sizes: Sizes, make: Maker, rows: int) -> Case:
    x, residual = make(rows, sizes.channels).requires_grad_(), make.float32(rows, sizes.channels)
    weight = make.float32(sizes.channels).requires_grad_()

    def plain() -> Tensor:
        return F.rms_norm(residual + x, weight.shape, weight, EPS).to(x.dtype)

    forward = 2 * bytes_of(x) + 2 * bytes_of(residual) + bytes_of(weight)
    return Case(
        name="rms_norm",
        configuration=f"{rows} rows of {sizes.channels}, residual",
        ours=lambda: ops.rms_norm(x, weight, eps=EPS, residual=residual)[0],
        peers={
            "torch": plain,
            **with_liger(
                "liger_rms_norm", lambda norm: norm(residual + x, weight, EPS).to(x.dtype), device=make.device
            ),
        },
        num_bytes=forward,
        flops=NORM_FLOPS * x.numel(),
        leaves=(x, weight),
        both_bytes=2 * forward,
        both_flops=3 * NORM_FLOPS * x.numel(),
    )


def _bias_gelu(sizes: Sizes, make: Maker, rows: int) -> Case:
    x, bias = make(rows, sizes.mlp).requires_grad_(), make(sizes.mlp).requires_grad_()
    return Case(
        name="bias_gelu",
        configuration=f"{rows} rows of {sizes.mlp}",
        ours=lambda: ops.bias_gelu(x, bias),
        peers={"torch": lambda: F.gelu(x + bias, approximate="tanh")},
        num_bytes=2 * bytes_of(x) + bytes_of(bias),
        flops=ACTIVATION_FLOPS * x.numel(),
        leaves=(x, bias),
        both_bytes=5 * bytes_of(x) + 3 * bytes_of(bias),
        both_flops=3 * ACTIVATION_FLOPS * x.numel(),
    )


def _gated_silu(sizes: Sizes, make: Maker, rows: int) -> Case:
    return _gated("gated_silu", sizes, make, rows)


def _gated_gelu(sizes: Sizes, make: Maker, rows: int) -> Case:
    return _gated("gated_gelu", sizes, make, rows)


def _gated(name: str, sizes: Sizes, make: Maker, rows: int) -> Case:
    x = make(rows, 2 * sizes.mlp).requires_grad_()
    silu = name == "gated_silu"
    operation = ops.gated_silu if silu else ops.gated_gelu

    def plain() -> Tensor:
        gate, up = x.chunk(2, dim=1)
        return (F.silu(gate) if silu else F.gelu(gate, approximate="tanh")) * up

    return Case(
        name=name,
        configuration=f"{rows} rows of {sizes.mlp}",
        ours=lambda: operation(x),
        peers={
            "torch": plain,
            **with_liger(
                "liger_swiglu" if silu else "liger_geglu", lambda gated: gated(*x.chunk(2, dim=1)), device=make.device
            ),
        },
        num_bytes=bytes_of(x) * 3 // 2,
        flops=ACTIVATION_FLOPS * x.numel() // 2,
        leaves=(x,),
        both_bytes=4 * bytes_of(x),
        both_flops=3 * ACTIVATION_FLOPS * x.numel() // 2,
    )


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, D], cos and sin [T, D / 2]."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _rotary(sizes: Sizes, make: Maker, rows: int) -> Case:
    q = make(rows, sizes.heads, sizes.head_size).requires_grad_()
    k = make(rows, sizes.kv_heads, sizes.head_size).requires_grad_()
    angles = make.float32(rows, sizes.head_size // 2)
    cos, sin = angles.cos(), angles.sin()

    def ours() -> Tensor:
        return torch.cat(ops.rotary(q, k, cos, sin), dim=1)

    def plain() -> Tensor:
        return torch.cat((_turned(q, cos, sin), _turned(k, cos, sin)), dim=1)

    return Case(
        name="rotary",
        configuration=f"{rows} rows, {sizes.heads} and {sizes.kv_heads} heads of {sizes.head_size}, then joined",
        ours=ours,
        peers={"torch": plain},
        num_bytes=4 * bytes_of(q, k) + bytes_of(cos, sin),  # joining moves them once more
        flops=3 * (q.numel() + k.numel()),
        leaves=(q, k),
        both_bytes=8 * bytes_of(q, k) + 2 * bytes_of(cos, sin),
        both_flops=6 * (q.numel() + k.numel()),
    )


def _rotary_write_kv(sizes: Sizes, make: Maker, rows: int) -> Case:
    q = make(rows, sizes.heads, sizes.head_size)
    k, v = (make(rows, sizes.kv_heads, sizes.head_size) for _ in range(2))
    angles = make.float32(rows, sizes.head_size // 2)
    cos, sin = angles.cos(), angles.sin()
    num_blocks = -(-rows // sizes.block)
    cache = make.cache(num_blocks, sizes.block, sizes.kv_heads, sizes.head_size)
    slots = torch.randperm(num_blocks * sizes.block, device=make.device)[:rows]

    def plain() -> Tensor:
        cache.k.flatten(0, 1)[slots] = _turned(k, cos, sin)
        cache.v.flatten(0, 1)[slots] = v
        return _turned(q, cos, sin)

    return Case(
        name="rotary_write_kv",
        configuration=f"{rows} rows, {sizes.heads} and {sizes.kv_heads} heads of {sizes.head_size}",
        ours=lambda: ops.rotary_write_kv(q, k, v, cos, sin, cache, slots),
        peers={"torch": plain},
        num_bytes=2 * bytes_of(q, k, v) + bytes_of(cos, sin, slots),
        flops=3 * (q.numel() + k.numel()),
    )


def _copy_blocks(sizes: Sizes, make: Maker) -> Case:
    num_pairs = sizes.context // sizes.block
    cache = make.cache(2 * num_pairs, sizes.block, sizes.kv_heads, sizes.head_size)
    pairs = torch.randperm(2 * num_pairs, device=make.device).view(num_pairs, 2)

    def ours() -> Tensor:
        ops.copy_blocks(cache, pairs)
        return cache.k

    def plain() -> Tensor:
        for part in (cache.k, cache.v):
            part[pairs[:, 1]] = part[pairs[:, 0]]
        return cache.k

    return Case(
        name="copy_blocks",
        configuration=f"{num_pairs} blocks of {sizes.block} tokens",
        ours=ours,
        peers={"torch": plain},
        num_bytes=bytes_of(cache.k, cache.v),  # half are read, half written
        flops=0,
    )


def _head_topk(sizes: Sizes, make: Maker) -> Case:
    hidden, weight = make(sizes.sequences, sizes.channels), make(sizes.vocab, sizes.channels)

    def plain() -> Tensor:
        logits = F.linear(hidden, weight).float()
        values: Tensor = logits.topk(NUM_CANDIDATES).values
        return values - logits.logsumexp(-1, keepdim=True)

    def ours() -> Tensor:
        found = ops.head_topk(hidden, weight, k=NUM_CANDIDATES)
        return found.values - found.lse[:, None]

    return Case(
        name="head_topk",
        configuration=f"{sizes.sequences} rows, {sizes.vocab} ids, best {NUM_CANDIDATES}",
        ours=ours,
        peers={"torch": plain},
        num_bytes=bytes_of(hidden, weight),
        flops=2 * sizes.sequences * weight.numel(),
    )


def _head_logits(sizes: Sizes, make: Maker) -> Case:
    hidden, weight = make(sizes.sequences, sizes.channels), make(sizes.vocab, sizes.channels)
    return Case(
        name="head_logits",
        configuration=f"{sizes.sequences} rows, {sizes.vocab} ids",
        ours=lambda: ops.head_logits(hidden, weight)[0],
        peers={"torch": lambda: F.linear(hidden, weight).float()},
        num_bytes=bytes_of(hidden, weight) + 2 * 4 * sizes.sequences * sizes.vocab,  # raw and edited
        flops=2 * sizes.sequences * weight.numel(),
    )


def _token_logprobs(sizes: Sizes, make: Maker) -> Case:
    hidden, weight = make(sizes.rows, sizes.channels), make(sizes.vocab, sizes.channels)
    targets = make.ids(sizes.rows, below=sizes.vocab)

    def plain() -> Tensor:
        logits = F.linear(hidden, weight)
        chosen = logits.gather(1, targets[:, None])[:, 0].float()
        return chosen - logits.float().logsumexp(-1)

    return Case(
        name="token_logprobs",
        configuration=f"{sizes.rows} rows, {sizes.vocab} ids",
        ours=lambda: ops.token_logprobs(hidden, weight, targets)[0],
        peers={"torch": plain},
        num_bytes=bytes_of(hidden, weight, targets),
        flops=2 * sizes.rows * weight.numel(),
    )


def _loss(sizes: Sizes, make: Maker) -> Case:
    hidden = make(sizes.rows, sizes.channels).requires_grad_()
    weight = make(sizes.vocab, sizes.channels).requires_grad_()
    targets = make.ids(sizes.rows, below=sizes.vocab)

    def ours() -> Tensor:
        return ops.linear_cross_entropy(hidden, weight, targets).mean()

    flops = 2 * sizes.rows * weight.numel()
    return Case(
        name="linear_cross_entropy",
        configuration=f"{sizes.rows} rows, {sizes.vocab} ids",
        ours=ours,
        peers={
            "torch": lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets),
            **with_liger(
                "liger_fused_linear_cross_entropy", lambda loss: loss(hidden, weight, targets), device=make.device
            ),
        },
        num_bytes=bytes_of(hidden, weight, targets),
        flops=flops,
        leaves=(hidden, weight),
        both_bytes=3 * bytes_of(hidden, weight),
        both_flops=4 * flops,  # logits once more, and two products
    )


def _random_uniform(sizes: Sizes, make: Maker) -> Case:
    seeds, choices, positions = (make.ids(sizes.sequences, below=2**31) for _ in range(3))
    count = 2000
    return Case(
        name="random_uniform",
        configuration=f"{sizes.sequences} rows of {count}",
        ours=lambda: ops.random_uniform(seeds, choices, positions, 1, count),
        peers={},  # torch's numbers are of another kind: they depend on what was drawn before
        num_bytes=4 * sizes.sequences * count,
        flops=0,
    )
