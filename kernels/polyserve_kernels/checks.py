"""What operations say to arguments that they cannot take: ValueError with what was wanted and what came.

First what any tensor can be asked, then what operations ask of their arguments. Sizes are lettered as in `ops.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels.types import (
    KEY_TILE,
    BlockCache,
    LogitEdits,
    PackedWeight,
    QuantizedWeight,
    Scoring,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SCALED = (torch.int8, torch.float8_e4m3fn)  # cache dtypes whose numbers have a scale for each token and head
QUANTIZED = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}  # scheme of a weight -> its values
GROUP_SIZES = (16, 32, 64, 128)  # channels of a quantised weight that share a scale


def check_shape(name: str, x: Tensor, wanted: Sequence[int | str]) -> None:
    """Refuse a shape that differs. A number is wanted exactly; a word stands for any size, and names it."""
    shape = x.shape
    fits = len(shape) == len(wanted)
    for w, s in zip(wanted, shape, strict=False):
        fits = fits and (w == s or isinstance(w, str))
    if not fits:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, wanted))}], got {list(shape)}")


def check_dtype(name: str, x: Tensor, *wanted: torch.dtype) -> None:
    if x.dtype not in wanted:
        raise ValueError(f"{name} must be {' or '.join(_word(dtype) for dtype in wanted)}, got {_word(x.dtype)}")


def check_together(**tensors: Tensor | PackedWeight | None) -> None:
    """Refuse tensors on different devices."""
    if len({x.device for x in tensors.values() if x is not None}) > 1:
        present = {name: x.device for name, x in tensors.items() if x is not None}
        raise ValueError(f"{', '.join(present)} must be on one device, got {', '.join(map(str, present.values()))}")


def check_contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(x.stride())} for shape {list(x.shape)}")


def check_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be more than 0, got {value}")


def check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")


def out_dtype_of(x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a result: the one asked for, or x's."""
    if out_dtype is not None and out_dtype not in FLOATS:
        raise ValueError(f"out_dtype must be float32 or bfloat16 or float16, got {_word(out_dtype)}")
    return out_dtype or x.dtype


def check_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None) -> None:
    check_dtype("x", x, *FLOATS)
    if x.dim() == 0:
        raise ValueError("x must have shape [..., C], got []")
    check_shape("weight", weight, (x.shape[-1],))
    check_dtype("weight", weight, *FLOATS)
    check_positive("eps", eps)
    if bias is not None:
        check_shape("bias", bias, (x.shape[-1],))
        check_dtype("bias", bias, weight.dtype)
    if residual is not None:
        check_shape("residual", residual, x.shape)
        check_dtype("residual", residual, torch.float32)
    check_together(x=x, weight=weight, bias=bias, residual=residual)


def check_gated(x: Tensor) -> None:
    check_shape("x", x, ("T", "2F"))
    check_dtype("x", x, *FLOATS)
    if x.shape[1] % 2:
        raise ValueError(f"x must have an even number of columns, gate and up, got {x.shape[1]}")


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_shape("q", q, ("T", "Hq", "D"))
    check_shape("k", k, (q.shape[0], "Hkv", q.shape[2]))
    check_shape("v", v, k.shape)
    check_dtype("q", q, *FLOATS)
    check_dtype("k", k, q.dtype)
    check_dtype("v", v, q.dtype)
    check_groups(q.shape[1], k.shape[1])
    check_together(q=q, k=k, v=v)


def check_groups(query_heads: int, kv_heads: int) -> None:
    if kv_heads == 0 or query_heads % kv_heads:
        raise ValueError(f"Hkv must divide Hq, got Hq {query_heads} and Hkv {kv_heads}")


def check_angles(q: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_shape("cos", cos, (q.shape[0], "R / 2"))
    check_shape("sin", sin, cos.shape)
    check_dtype("cos", cos, torch.float32)
    check_dtype("sin", sin, torch.float32)
    if 2 * cos.shape[1] > q.shape[2]:
        raise ValueError(f"cos must have at most D / 2 = {q.shape[2] // 2} columns, got {cos.shape[1]}")
    check_together(q=q, cos=cos, sin=sin)


def check_cache(cache: BlockCache, kv_heads: int | str, head_size: int | str) -> None:
    check_shape("cache.k", cache.k, ("num_blocks", "block_size", kv_heads, head_size))
    check_shape("cache.v", cache.v, cache.k.shape)
    check_dtype("cache.k", cache.k, *FLOATS, *SCALED)
    check_dtype("cache.v", cache.v, cache.k.dtype)
    check_contiguous("cache.k", cache.k)
    check_contiguous("cache.v", cache.v)
    block_size = cache.k.shape[1]
    if block_size == 0 or (KEY_TILE % block_size and block_size % KEY_TILE):
        raise ValueError(f"block_size must divide {KEY_TILE} or be a multiple of it, got {block_size}")
    scaled = cache.k.dtype in SCALED
    for name, scales in (("cache.k_scales", cache.k_scales), ("cache.v_scales", cache.v_scales)):
        if (scales is not None) != scaled:
            wanted = "are needed" if scaled else "must be None"
            raise ValueError(f"{name} {wanted} for a cache in {_word(cache.k.dtype)}, got {_given(scales)}")
        if scales is not None:
            check_shape(name, scales, cache.k.shape[:3])
            check_dtype(name, scales, torch.float32)
            check_contiguous(name, scales)
    check_float8("a cache", cache.k)
    check_together(k=cache.k, v=cache.v, k_scales=cache.k_scales, v_scales=cache.v_scales)


def check_float8(what: str, x: Tensor) -> None:
    """Refuse float8_e4m3fn on a GPU that has no such numbers."""
    if x.dtype == torch.float8_e4m3fn and x.is_cuda:
        capability = torch.cuda.get_device_capability(x.device)
        if capability < (8, 9):
            raise ValueError(
                f"{what} in float8_e4m3fn needs a GPU of sm_89 or later, got sm_{capability[0]}{capability[1]}"
            )


def check_quantized(w: QuantizedWeight, channels: int) -> None:
    if w.scheme not in QUANTIZED:
        raise ValueError(f"w.scheme must be {', '.join(QUANTIZED)}, got {w.scheme}")
    check_dtype("w.values", w.values, QUANTIZED[w.scheme])
    if w.scheme == "int4" and channels % 2:
        raise ValueError(f"x must have an even number of columns for a weight in int4, got {channels}")
    check_shape("w.values", w.values, ("N", channels // 2 if w.scheme == "int4" else channels))
    check_contiguous("w.values", w.values)
    check_shape("w.scales", w.scales, (w.values.shape[0], "K / group"))
    check_dtype("w.scales", w.scales, *FLOATS)
    num_groups = w.scales.shape[1]
    sizes = GROUP_SIZES if w.scheme == "int4" else (*GROUP_SIZES, channels)
    if 0 in (channels, num_groups) or channels % num_groups or channels // num_groups not in sizes:
        raise ValueError(
            f"w.scales must have a column for each {', '.join(map(str, sizes))} channels of {w.scheme}, "
            f"got {num_groups} for {channels}"
        )
    if (w.minimums is not None) != (w.scheme == "int4"):
        wanted = "are needed" if w.scheme == "int4" else "must be None"
        raise ValueError(f"w.minimums {wanted} for a weight in {w.scheme}, got {_given(w.minimums)}")
    if w.minimums is not None:
        check_shape("w.minimums", w.minimums, w.scales.shape)
        check_dtype("w.minimums", w.minimums, w.scales.dtype)
        if any(n > 1 and w.minimums.stride(i) != w.scales.stride(i) for i, n in enumerate(w.scales.shape)):
            strides = f"{list(w.scales.stride())}, got {list(w.minimums.stride())}"
            raise ValueError(f"w.minimums must have the strides of w.scales, {strides}")
    check_float8("a weight", w.values)


def check_paged(q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor) -> None:
    check_shape("q", q, ("T", "Hq", "D"))
    check_dtype("q", q, *FLOATS)
    check_cache(cache, "Hkv", q.shape[2])
    check_groups(q.shape[1], cache.k.shape[2])
    check_shape("block_tables", block_tables, ("S", "max_blocks"))
    check_shape("seq_lens", seq_lens, (block_tables.shape[0],))
    check_dtype("block_tables", block_tables, torch.int32)
    check_dtype("seq_lens", seq_lens, torch.int32)
    check_together(q=q, cache=cache.k, block_tables=block_tables, seq_lens=seq_lens)


def check_scoring(q: Tensor, scoring: Scoring) -> None:
    if scoring.alibi_slopes is not None:
        check_shape("alibi_slopes", scoring.alibi_slopes, (q.shape[1],))
        check_dtype("alibi_slopes", scoring.alibi_slopes, torch.float32)
        check_together(q=q, alibi_slopes=scoring.alibi_slopes)
    check_positive("window", scoring.window)
    check_positive("soft_cap", scoring.soft_cap)


def check_weight(name: str, w: Tensor | PackedWeight, x: Tensor, rows: str) -> None:
    """Refuse a weight that x [., K] cannot be multiplied with."""
    if isinstance(w, Tensor):
        check_shape(name, w, (rows, x.shape[1]))
        check_dtype(name, w, x.dtype)
    else:
        if w.channels != x.shape[1]:
            raise ValueError(f"{name} must have shape [{rows}, {x.shape[1]}], got {list(w.shape)}")
        if w.dtype not in (None, x.dtype):
            raise ValueError(f"{name} must be {x.dtype}, got {w.dtype}")
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{name} is packed: no gradient passes through it")


def check_head(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    edits: LogitEdits | None,
    temperature: Tensor | None,
    soft_cap: float | None,
) -> None:
    check_shape("hidden", hidden, ("S", "C"))
    check_dtype("hidden", hidden, *FLOATS)
    check_weight("weight", weight, hidden, "V")
    check_positive("soft_cap", soft_cap)
    if temperature is not None:
        check_shape("temperature", temperature, (hidden.shape[0],))
        check_dtype("temperature", temperature, torch.float32)
    check_together(hidden=hidden, weight=weight, temperature=temperature)
    if edits is not None:
        check_edits(edits, hidden.shape[0], weight.shape[0])
        check_together(hidden=hidden, rows=edits.rows, allowed=edits.allowed)


def check_edits(edits: LogitEdits, num_rows: int, vocab_size: int) -> None:
    for name, dtype in (
        ("rows", torch.int64),
        ("ids", torch.int64),
        ("repetition", torch.float32),
        ("bias", torch.float32),
    ):
        entries: Tensor = getattr(edits, name)
        check_shape(f"edits.{name}", entries, (edits.rows.shape[0] if edits.rows.dim() else "E",))
        check_dtype(f"edits.{name}", entries, dtype)
    if edits.allowed is not None:
        check_shape("edits.allowed", edits.allowed, (num_rows, (vocab_size + 31) // 32))
        check_dtype("edits.allowed", edits.allowed, torch.int32)


def check_num_top(num_top: int, vocab_size: int) -> None:
    if not 0 <= num_top <= vocab_size:
        raise ValueError(f"num_top must be 0 to {vocab_size} (the vocabulary), got {num_top}")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _given(x: Tensor | None) -> str:
    return "none" if x is None else f"{_word(x.dtype)} {list(x.shape)}"
