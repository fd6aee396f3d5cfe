"""Every operation: its contract, its checks, one line of dispatch. Nothing else of this package is imported from
outside, except `types` (the values that operations take and give) and `dispatch` (which backend answers).

Sizes        T tokens   S sequences or rows   Hq query heads   Hkv key and value heads, divides Hq   D head size
             C channels   F width of the MLP   V vocabulary
Invariance   a row's result is the same bits whatever other rows are in the call, whether its keys came in one chunk or
             many, as prefill or as decode, and at every thread count, within one numerics id (`dispatch.numerics_id`).
Arithmetic   operands in the dtype they come in (float32, bfloat16 or float16), every sum, norm, softmax and log-sum-exp
             in float32, one rounding at the end.
Memory       results are newly allocated and arguments are only read, except where a contract says what it writes to.
Errors       ValueError with what was wanted and what came, before anything is computed. What index tensors hold is not
             looked at.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from polyserve_kernels.checks import (
    FLOATS,
    check_angles,
    check_cache,
    check_dtype,
    check_gated,
    check_head,
    check_heads,
    check_norm,
    check_not_negative,
    check_num_top,
    check_paged,
    check_quantized,
    check_scoring,
    check_shape,
    check_together,
    check_weight,
    out_dtype_of,
)
from polyserve_kernels.decoder_parts import DecoderParts
from polyserve_kernels.dispatch import backend, backend_name
from polyserve_kernels.types import (
    BlockCache,
    HeadTopK,
    LogitEdits,
    LossOptions,
    PackedWeight,
    QuantizedWeight,
    Scoring,
    WeightFormat,
)


def matmul(
    x: Tensor, w: Tensor | PackedWeight, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """y = x w^T + bias.

    x: [T, K], T may be 0.  w: [N, K].  bias: [N].  All of one dtype; a packed weight of integers goes with any.
    Packed floats give the bits of the tensor that they were packed from. No gradient passes through packed weights.
    Returns [T, N] in out_dtype (default: x's; float32 gives unrounded sums, which may be added up in another order).
    """
    check_shape("x", x, ("T", "K"))
    check_dtype("x", x, *FLOATS)
    check_weight("w", w, x, "N")
    if bias is not None:
        check_shape("bias", bias, (w.shape[0],))
        check_dtype("bias", bias, x.dtype)
    check_together(x=x, w=w, bias=bias)
    return backend(x.device).matmul(x, w, bias, out_dtype=out_dtype_of(x, out_dtype))


def packs_weights(device: torch.device) -> bool:
    """Whether `device` multiplies packed weights: `packed_weight` and `pack` are for those alone."""
    return backend(device).packing is not None


def packed_weight(
    parts: Sequence[tuple[int, WeightFormat]], channels: int, *, device: torch.device | None = None
) -> PackedWeight:
    """A weight [N, channels] of zeros to `pack` rows into.

    parts: number of rows and format of each.  device: default the CPU.
    """
    for _, form in parts:
        if form.gguf_type is not None and channels % form.block:
            raise ValueError(f"channels must be a multiple of {form.block} for {form}, got {channels}")
    packed: PackedWeight = _packing(device or torch.device("cpu")).packed_weight(parts, channels)
    return packed


def pack(
    w: PackedWeight, source: Tensor | QuantizedWeight, rows: Tensor, *, part: int = 0, first_channel: int = 0
) -> None:
    """Put rows of a checkpoint into a packed weight, each once.  Writes to the memory of w.

    source: what the part's format is made of.  Floats: [R, K], or some channels from first_channel on, at any strides,
    rounded to the format's dtype.  Integers: `QuantizedWeight` [R, K] of the format's group.  GGUF blocks: uint8
    [R, bytes of a row].
    rows: [R] int64, the part's row for each of them.
    """
    form = w.parts[part].form
    check_dtype("rows", rows, torch.int64)
    if isinstance(source, QuantizedWeight):
        check_quantized(source, w.channels)
        if form != source.form:
            raise ValueError(f"source must be {form}, got {source.form}")
        check_shape("rows", rows, (source.num_outputs,))
    else:
        check_shape("source", source, (rows.shape[0] if rows.dim() else "R", "K"))
        check_dtype("source", source, *(FLOATS if form.dtype else (torch.uint8,)))
        if form.dtype and source.shape[1] + first_channel > w.channels:
            raise ValueError(f"source must have at most {w.channels - first_channel} channels, got {source.shape[1]}")
    _packing(w.device).pack(w, source, rows, part=part, first_channel=first_channel)


def embedding(ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Rows of a weight [V, C], as they are, in float32.  ids: [T] int64.  Returns [T, C]."""
    check_shape("ids", ids, ("T",))
    check_dtype("ids", ids, torch.int64)
    if isinstance(weight, Tensor):
        return weight[ids].float()
    rows: Tensor = _packing(weight.device).unpacked(weight, ids)
    return rows


def _packing(device: torch.device) -> Any:
    packing = backend(device).packing
    if packing is None:
        raise ValueError(f"weights on {device} must be tensors for backend {backend_name(device)}, got a packed one")
    return packing


def quantized_matmul(
    x: Tensor, w: QuantizedWeight, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """y = x w^T + bias of a weight that is stored in 8 or 4 bits: `matmul`'s result, bit for bit, of the weight in x's
    dtype, which is never held as a whole where x has few rows.

    x: [T, K], T may be 0.  w: `QuantizedWeight` [N, K], which says how it is rounded to x's dtype; fp8 needs a GPU of
    sm_89 or later.  bias: [N] in x's dtype.  Gradients pass to x and bias.
    Returns [T, N] in out_dtype (default: x's).
    """
    check_shape("x", x, ("T", "K"))
    check_dtype("x", x, *FLOATS)
    check_quantized(w, x.shape[1])
    if bias is not None:
        check_shape("bias", bias, (w.num_outputs,))
        check_dtype("bias", bias, x.dtype)
    check_together(x=x, values=w.values, scales=w.scales, minimums=w.minimums, bias=bias)
    return backend(x.device).quantized_matmul(x, w, bias, out_dtype=out_dtype_of(x, out_dtype))


@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: None = None, out_dtype: torch.dtype | None = None
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    x: [..., C].  weight: [C], its dtype may differ (Gemma's 1 + w is added when a checkpoint is loaded).
    residual: [..., C] float32: then the sum residual + x is normed instead of x, in float32.
    Returns y in out_dtype (default: x's); with a residual (y, residual + x).
    Source: https://arxiv.org/abs/1910.07467
    """
    check_norm(x, weight, None, eps, residual)
    if residual is None:
        return backend(x.device).rms_norm(x, weight, eps=eps, out_dtype=out_dtype_of(x, out_dtype))
    return backend(x.device).add_rms_norm(x, residual, weight, eps=eps, out_dtype=out_dtype_of(x, out_dtype))


@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, residual: None = None, out_dtype: torch.dtype | None = None
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, residual: Tensor, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension, var without Bessel's correction.

    bias: [C] in weight's dtype; the rest as for `rms_norm`.
    Source: https://arxiv.org/abs/1607.06450
    """
    check_norm(x, weight, bias, eps, residual)
    if residual is None:
        return backend(x.device).layer_norm(x, weight, bias, eps=eps, out_dtype=out_dtype_of(x, out_dtype))
    return backend(x.device).add_layer_norm(x, residual, weight, bias, eps=eps, out_dtype=out_dtype_of(x, out_dtype))


def bias_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU by its tanh form, of x + bias.  x: [T, F].  bias: [F] in x's dtype.  Returns [T, F] in x's dtype.

    Source: https://arxiv.org/abs/1606.08415, section 2
    """
    check_shape("x", x, ("T", "F"))
    check_dtype("x", x, *FLOATS)
    if bias is not None:
        check_shape("bias", bias, (x.shape[1],))
        check_dtype("bias", bias, x.dtype)
    check_together(x=x, bias=bias)
    return backend(x.device).bias_gelu(x, bias)


def gated_silu(x: Tensor) -> Tensor:
    """silu(gate) * up.  x: [T, 2F], gate and up side by side.  Returns [T, F] in x's dtype.

    Source: https://arxiv.org/abs/2002.05202
    """
    check_gated(x)
    return backend(x.device).gated_silu(x)


def gated_gelu(x: Tensor) -> Tensor:
    """gelu(gate) * up, GELU by its tanh form.  x: [T, 2F], gate and up side by side.  Returns [T, F] in x's dtype."""
    check_gated(x)
    return backend(x.device).gated_gelu(x)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """Turn the R leading elements of every head, pair by pair: (a, b) -> (a cos - b sin, b cos + a sin), in float32.

    q: [T, Hq, D].  k: [T, Hkv, D], q's dtype.  cos, sin: [T, R / 2] float32, of each token's angles, R <= D.
    Pairs are elements (i, i + R / 2), or (2i, 2i + 1) if interleaved.  Returns rotated q and k.
    Source: https://arxiv.org/abs/2104.09864
    """
    check_heads(q, k, k)
    check_angles(q, cos, sin)
    return backend(q.device).rotary(q, k, cos, sin, interleaved=interleaved)


def rotary_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: BlockCache,
    slot_mapping: Tensor,
    *,
    interleaved: bool = False,
) -> Tensor:
    """Rotate q and k as `rotary` does, and write k and v into their slots.  Writes to the tensors of cache.

    q: [T, Hq, D].  k, v: [T, Hkv, D].  cos, sin: [T, R / 2] float32, or both None: no rotation.
    cache: `BlockCache`; k and v are rounded to its dtype, or divided by scales of their own, which are written too.
    slot_mapping: [T] int64, block * block_size + offset, none twice; at -1 nothing is written.
    Returns rotated q.
    """
    check_heads(q, k, v)
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin must be given together, got one of them")
    if cos is not None and sin is not None:
        check_angles(q, cos, sin)
    check_cache(cache, k.shape[1], k.shape[2])
    check_shape("slot_mapping", slot_mapping, (q.shape[0],))
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    check_together(q=q, cache=cache.k, slot_mapping=slot_mapping)
    return backend(q.device).rotary_write_kv(q, k, v, cos, sin, cache, slot_mapping, interleaved=interleaved)


def copy_blocks(cache: BlockCache, pairs: Tensor) -> None:
    """Copy whole blocks, their scales included, inside one layer's cache.  Writes to the tensors of cache.

    pairs: [P, 2] int64, (source, destination); no destination stands twice or is a source.
    """
    check_cache(cache, "Hkv", "D")
    check_shape("pairs", pairs, ("P", 2))
    check_dtype("pairs", pairs, torch.int64)
    check_together(cache=cache.k, pairs=pairs)
    backend(cache.k.device).copy_blocks(cache, pairs)


@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of packed sequences, each to itself alone.

    q: [T, Hq, D].  k, v: [T, Hkv, D].  All of one dtype.
    cu_seqlens: [S + 1] int32, the first token of each sequence, then T.  S may be 0, a sequence may be empty.
    scale: multiplies q.k, usually D ** -0.5.  soft_cap: score becomes soft_cap * tanh(score / soft_cap).
    alibi_slopes: [Hq] float32; then adds slope * (key position - query position) to the score.
    window: the query at position i sees the keys at i - window < j <= i.
    Returns [T, Hq, D] in q's dtype; with return_lse also the log-sum-exp of each row's scores, [T, Hq] float32, through
    which no gradient passes.
    Source: https://arxiv.org/abs/2205.14135
    """
    check_heads(q, k, v)
    scoring = Scoring(scale=scale, soft_cap=soft_cap, alibi_slopes=alibi_slopes, window=window)
    check_scoring(q, scoring)
    check_shape("cu_seqlens", cu_seqlens, ("S + 1",))
    check_dtype("cu_seqlens", cu_seqlens, torch.int32)
    check_together(q=q, cu_seqlens=cu_seqlens)
    out, lse = backend(q.device).attention_varlen(q, k, v, cu_seqlens, scoring)
    return (out, lse) if return_lse else out


def paged_prefill(
    q: Tensor,
    cache: BlockCache,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of each sequence's last tokens to its cached keys, their own included.

    q: [T, Hq, D].
    cache: `BlockCache`, its dtype may differ from q's; block_size divides 128 or is a multiple.
    block_tables: [S, max_blocks] int32, row s lists sequence s's blocks in order, -1 after the last.
    seq_lens: [S] int32, in tokens, counting the new ones.
    cu_seqlens_q: [S + 1] int32, the first row of each sequence in q, then T.  A sequence may have no row.
    Row r of a sequence with n rows stands at position seq_len - n + r.  Options and result as for `attention_varlen`.
    """
    check_paged(q, cache, block_tables, seq_lens)
    scoring = Scoring(scale=scale, soft_cap=soft_cap, alibi_slopes=alibi_slopes, window=window)
    check_scoring(q, scoring)
    check_shape("cu_seqlens_q", cu_seqlens_q, (seq_lens.shape[0] + 1,))
    check_dtype("cu_seqlens_q", cu_seqlens_q, torch.int32)
    check_together(q=q, cu_seqlens_q=cu_seqlens_q)
    return backend(q.device).paged_prefill(q, cache, block_tables, seq_lens, cu_seqlens_q, scoring)


def paged_decode(
    q: Tensor,
    cache: BlockCache,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """`paged_prefill` with one query a sequence, its last token.

    q: [S, Hq, D].  The rest as for `paged_prefill`.  Returns [S, Hq, D] in q's dtype; zeros where seq_lens is 0.
    Source: https://arxiv.org/abs/2309.06180, section 4.1; partials over keys as in Flash-Decoding (Dao et al., 2023)
    """
    check_paged(q, cache, block_tables, seq_lens)
    scoring = Scoring(scale=scale, soft_cap=soft_cap, alibi_slopes=alibi_slopes, window=window)
    check_scoring(q, scoring)
    check_shape("q", q, (seq_lens.shape[0], "Hq", "D"))
    return backend(q.device).paged_decode(q, cache, block_tables, seq_lens, scoring)


def decoder_step(parts: DecoderParts, caches: Sequence[BlockCache]) -> Callable[..., Tensor] | None:
    """A decoder's forward pass over the paged cache as one call, bound to its weights and caches.

    None where the backend computes operation by operation, which gives the same bits.

    The call takes token_ids, positions, slot_mapping [T] int64, block_tables [S, max_blocks], seq_lens [S] and
    cu_seqlens_q [S + 1] int32, all contiguous, as in `rotary_write_kv` and `paged_prefill`; it writes to the caches and
    returns the hidden states [T, C] after the final norm. It keeps parts and caches alive.
    """
    make = backend(caches[0].k.device).decoder_step
    return None if make is None else make(parts, caches)


def num_vocab_tiles(vocab_size: int, channels: int, *, device: torch.device | None = None) -> int:
    """How many tiles `head_topk` cuts a head [vocab_size, channels] into.  Default device: the CPU."""
    return backend(device or torch.device("cpu")).num_vocab_tiles(vocab_size, channels)


def head_topk(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    *,
    k: int,
    temperature: Tensor | None = None,
    edits: LogitEdits | None = None,
    uniforms: Tensor | None = None,
    num_top: int = 0,
    soft_cap: float | None = None,
) -> HeadTopK:
    """What sampling needs of the logits hidden x weight^T, in tiles of the vocabulary, never holding [S, V].

    hidden: [S, C].  weight: [V, C], hidden's dtype.  Logits are float32.
    soft_cap: a logit becomes soft_cap * tanh(logit / soft_cap).  edits: see `LogitEdits`.
    temperature: [S] float32, more than 0, divides the edited logits; None: 1.
    k: candidates a row, 1 to V.  num_top: entries of the raw top list, 0 to V.
    uniforms: [S, num_vocab_tiles(V, C), 2] float32, strictly inside (0, 1): draw one id a row from the whole
    vocabulary, exactly.  Tiles race with Gumbel noise, -log(-log(u0)) + log-sum-exp of the tile; inside the winner u1
    draws by inverse CDF.
    Returns `HeadTopK`.
    """
    check_head(hidden, weight, edits, temperature, soft_cap)
    vocab_size = weight.shape[0]
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must be 1 to {vocab_size} (the vocabulary), got {k}")
    check_num_top(num_top, vocab_size)
    chosen = backend(hidden.device)
    if uniforms is not None:
        check_shape("uniforms", uniforms, (hidden.shape[0], chosen.num_vocab_tiles(*weight.shape), 2))
        check_dtype("uniforms", uniforms, torch.float32)
    check_together(hidden=hidden, uniforms=uniforms)
    return chosen.head_topk(
        hidden, weight, k=k, temperature=temperature, edits=edits, uniforms=uniforms, num_top=num_top, soft_cap=soft_cap
    )


def head_logits(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    *,
    edits: LogitEdits | None = None,
    temperature: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """All logits, for the few rows whose filters reach past `head_topk`'s candidates; bits as inside `head_topk`.

    Arguments as for `head_topk`.  Returns raw and edited logits, [S, V] float32 each.
    """
    check_head(hidden, weight, edits, temperature, soft_cap)
    return backend(hidden.device).head_logits(hidden, weight, edits=edits, temperature=temperature, soft_cap=soft_cap)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    targets: Tensor,
    *,
    num_top: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities of given tokens, in tiles of the vocabulary, never holding [T, V].

    hidden: [T, C].  weight: [V, C], hidden's dtype.  targets: [T] int64; -inf is given for an id that there is not.
    Returns log-probabilities [T] float32, then the num_top best, as ids [T, N] int64 and log-probabilities [T, N]
    float32: best first, smaller id first among equals.  Each is raw - raw_lse, with the very floats of `head_topk`.
    """
    check_head(hidden, weight, None, None, soft_cap)
    check_shape("targets", targets, (hidden.shape[0],))
    check_dtype("targets", targets, torch.int64)
    check_together(hidden=hidden, targets=targets)
    check_num_top(num_top, weight.shape[0])
    return backend(hidden.device).token_logprobs(hidden, weight, targets, num_top=num_top, soft_cap=soft_cap)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The loss of each token: cross-entropy of its target in softmax(hidden x weight^T), never holding [T, V].

    hidden: [T, C].  weight: [V, C], hidden's dtype.  targets: [T] int64.
    loss = lse - target's logit + z_loss * lse^2, lse the log-sum-exp of the row's logits. It is 0 where the target is
    ignore_index, and inf for an id that there is not; from such rows no gradient comes.
    soft_cap: a logit becomes soft_cap * tanh(logit / soft_cap).
    group: weight is this process's part [V / processes, C] of the vocabulary, parts in order of rank. Hidden, targets
    and what is done with losses are the same in every process; so are losses, and the gradient of hidden.
    Returns losses [T] float32; with z_loss 0 each is the negative of `token_logprobs`' number, to the bit.
    Gradients are summed in float32 and rounded once: to hidden's dtype, and to weight.grad_dtype, which is weight's
    unless set. Two runs on one machine give the same bits. A row's loss is free of its company.
    Source: https://arxiv.org/abs/2411.09009; z-loss: https://arxiv.org/abs/2204.02311, section 5
    """
    check_head(hidden, weight, None, None, soft_cap)
    check_shape("targets", targets, (hidden.shape[0],))
    check_dtype("targets", targets, torch.int64)
    check_together(hidden=hidden, targets=targets)
    check_not_negative("z_loss", z_loss)
    options = LossOptions(ignore_index=ignore_index, z_loss=z_loss, soft_cap=soft_cap, group=group)
    return backend(hidden.device).linear_cross_entropy(hidden, weight, targets, options)


def random_uniform(seeds: Tensor, choices: Tensor, positions: Tensor, purpose: int, count: int) -> Tensor:
    """Random numbers that are a pure function of (seed, choice, position, purpose, index).

    seeds: [S] int64.  choices, positions: [S] int64, 0 to 2**32 - 1.  purpose: 0 to 2**32 - 1, one number for each use.
    Returns [S, count] float32, odd multiples of 2**-24: strictly inside (0, 1).  What comes first is free of count.
    Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)
    """
    for name, x in (("seeds", seeds), ("choices", choices), ("positions", positions)):
        check_shape(name, x, (seeds.shape[0] if seeds.dim() else "S",))
        check_dtype(name, x, torch.int64)
    check_together(seeds=seeds, choices=choices, positions=positions)
    for name, number in (("purpose", purpose), ("count", count)):
        if not 0 <= number < 2**32:
            raise ValueError(f"{name} must be 0 to 2**32 - 1, got {number}")
    return backend(seeds.device).random_uniform(seeds, choices, positions, purpose=purpose, count=count)
