"""Every operation: its contract, its checks, one line of dispatch. Nothing else of this package is imported from outside.

T tokens   S sequences or rows   H heads, Hq of queries, Hkv of keys and values, Hkv divides Hq   D head size   C channels   V vocabulary
Invariance   a row's result is the same bits whatever other rows are in the call, whether its keys came in one chunk or many, as prefill
             or as decode, and at every thread count, within one numerics id (`dispatch.numerics_id`).
Arithmetic   operands in the dtype they come in, every sum, norm, softmax and log-sum-exp in float32, one rounding at the end.
Errors       ValueError with what was wanted and what came, before anything is computed.
"""
# (contract drafts: bodies, checks and the dispatch line belong to the author of this file)
from dataclasses import dataclass
from torch import Tensor, dtype
import torch

def matmul(x, w, bias=None, *, out_dtype=None) -> Tensor:
    """y = x w^T + bias.  x: [T, K]; w: [N, K]; bias: [N] or None; same dtype (float32, bfloat16, float16).
    Returns [T, N] in out_dtype (default x's dtype; float32 gives the unrounded sums). T may be 0."""

def rms_norm(x, weight, *, eps, residual=None, out_dtype=None):
    """y = x / sqrt(mean(x^2) + eps) * weight.  x: [T, C] any float dtype; weight [C] (Gemma's 1 + w is already added at load).
    With residual [T, C] float32: residual' = residual + x, y = norm(residual'), returns (y, residual'), residual' newly allocated.
    Without: returns y. y in out_dtype (default x's)."""

def layer_norm(x, weight, bias, *, eps, residual=None, out_dtype=None):
    """The same with mean removed and bias added."""

def bias_gelu(x, bias=None) -> Tensor: """gelu_tanh(x + bias), x [T, F], bias [F] or None."""
def gated_silu(x) -> Tensor: """x [T, 2F] = gate | up -> silu(gate) * up, [T, F]."""
def gated_gelu(x) -> Tensor: """x [T, 2F] = gate | up -> gelu_tanh(gate) * up."""

def rotary(q, k, cos, sin, *, interleaved=False) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D], k [T, Hkv, D], cos/sin [T, R/2] float32, R <= D leading elements rotate. half layout pairs (i, i + R/2), interleaved (2i, 2i+1). fp32, one rounding."""

def rotary_write_kv(q, k, v, cos, sin, k_cache, v_cache, slot_mapping, *, interleaved=False) -> Tensor:
    """Rotate q and k (cos None: no rotation) and write k and v into their slots (mutates the caches; slot -1 is skipped). Returns rotated q.
    k_cache, v_cache [num_blocks, block_size, Hkv, D]; slot = block * block_size + offset; slot_mapping [T] int64."""

def copy_blocks(k_cache, v_cache, pairs) -> None:
    """Copy whole blocks inside one layer's caches. pairs: [P, 2] int64 (source, destination), no destination twice and none that is a source."""

def attention_varlen(q, k, v, cu_seqlens, *, scale, alibi_slopes=None, window=None, soft_cap=None) -> Tensor:
    """Causal attention of packed sequences, each to itself. q [T, Hq, D], k, v [T, Hkv, D], cu_seqlens [S + 1] int32. Returns [T, Hq, D].
    window w: query i sees keys j with i - w < j <= i."""

def paged_prefill(q, k_cache, v_cache, block_tables, seq_lens, cu_seqlens_q, *, scale, alibi_slopes=None, window=None, soft_cap=None) -> Tensor:
    """The last queries of each sequence against its cached keys: query r of sequence s stands at seq_lens[s] - q_len(s) + r."""

def paged_decode(q, k_cache, v_cache, block_tables, seq_lens, *, scale, alibi_slopes=None, window=None, soft_cap=None) -> Tensor:
    """paged_prefill with one query a sequence: q [S, Hq, D]."""

def num_vocab_tiles(V, C) -> int: ...

@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Changes to the logits of some rows, as sparse entries and a packed mask.  new = (logit > 0 ? logit / repetition : logit * repetition) + bias; not allowed: -inf."""
    rows: Tensor         # [E] int64, each (row, id) pair at most once
    ids: Tensor          # [E] int64
    repetition: Tensor   # [E] float32, 1 = none
    bias: Tensor         # [E] float32, may be -inf
    allowed: Tensor | None  # [S, ceil(V / 32)] int32, bit v % 32 of word v // 32

@dataclass(frozen=True, slots=True)
class HeadTopK:
    ids: Tensor        # [S, K] int64: best first by value, then by smaller id
    values: Tensor     # [S, K] float32: edited logits / temperature
    lse: Tensor        # [S] float32: log-sum-exp of edited logits / temperature over the whole vocabulary
    drawn_ids: Tensor | None      # [S] int64: one exact draw from softmax(edited / temperature) over the whole vocabulary
    raw_lse: Tensor    # [S] float32: of the model's own logits (after soft cap)
    raw: Tensor        # [S, K] the model's own logits of `ids`
    drawn_raw: Tensor | None  # [S]
    top_ids: Tensor    # [S, N] of the model's own logits
    top_raw: Tensor    # [S, N]

def head_topk(hidden, weight, *, k, temperature=None, edits=None, uniforms=None, num_top=0, soft_cap=None) -> HeadTopK:
    """hidden [S, C] times head weight [V, C] in vocabulary tiles, never holding [S, V].
    temperature [S] float32 > 0 or None (1).  uniforms [S, num_vocab_tiles, 2] float32 in (0, 1) or None: the draw. tile race by Gumbel noise
    -log(-log(u0)) + tile log-sum-exp, within the winning tile by inverse CDF with u1: one pass, order of tiles irrelevant."""

def head_logits(hidden, weight, *, edits=None, temperature=None, soft_cap=None): 
    """Full logits [S, V] float32 (raw) and edited/temperature, for the few rows whose filters reach past head_topk's survivors. Same bits as inside head_topk."""

def token_logprobs(hidden, weight, targets, *, num_top=0, soft_cap=None):
    """targets [T] int64 -> (logprobs [T] float32, top_ids [T, N] int64, top_logprobs [T, N] float32), in vocabulary tiles."""

def random_uniform(seeds, choices, positions, purpose: int, count: int) -> Tensor:
    """Counter-based: [S, count] float32 strictly inside (0, 1), pure function of (seed, choice, position, purpose, index).
    seeds [S] int64, choices [S] int64, positions [S] int64.  Source: Philox4x32-10, Salmon et al. 2011 (check the published test vectors)."""
