"""The best K ids of each row, exactly, from the best two of every group of a few ids.

Key     one int64 for a value and its id: the better, the larger, and no two ids have the same. Its upper half orders
        values as floats do (nan before inf), its lower half puts the smaller id first among equals
Closed  a group whose second best is not among the best K of all groups' two best has no third that is. So the best K
        are among those K keys and the ids of open groups, at most K / 2, whose logits are computed again
Groups  2 to 32 ids, about 2 sqrt(V / K): with 2 all keys are kept, which K = V needs
Memory  of a row 2 V / group keys and K group / 2 keys: V / 16 and 16 K where V is 256 K or more, else below 2 sqrt(K V)
Traffic besides those: the weight's rows of ids in open groups. Where the best stand in no order, about K^2 group / 2 V
        groups are open: for K = 128 of V = 256,000 it is one, 32 ids. At worst K / 2 are, 16 K ids
Shapes  S rows   N groups   kept [S, 2, N]: the best key of each group, then the second
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.head import Head, raw_of_ids
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.logit_edits import Edits, edit_row

MAX_GROUP = 32

_LOW = tl.constexpr(0xFFFFFFFF)
_NO_KEY = tl.constexpr(-(2**63))


@triton.jit
def _key(x, ids):
    """int64 that order pairs of a float32 and an id: the larger value, or among equals the smaller id, is larger."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # one zero
    order = tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) + (ids.to(tl.int64) ^ _LOW)


@triton.jit
def store_best(
    kept_ptr, x, rows, first, S, V, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Write the best two keys of each group in a tile of values [BLOCK_M, BLOCK_N], of ids from `first`, on a group.

    Beyond the vocabulary values are -inf. An id there may be kept, but is worse than any other.
    """
    x = tl.reshape(x, (BLOCK_M, BLOCK_N // GROUP, GROUP))
    n = tl.arange(0, GROUP)[None, None, :]
    best = tl.max(x, 2)
    place = tl.min(tl.where(x == best[:, :, None], n, GROUP - 1), 2)
    is_best = n == place[:, :, None]
    second = tl.max(tl.where(is_best, float("-inf"), x), 2)
    second_place = tl.min(tl.where((x == second[:, :, None]) & (n != place[:, :, None]), n, GROUP - 1), 2)
    group = first // GROUP + tl.arange(0, BLOCK_N // GROUP)
    N = tl.cdiv(V, GROUP)
    ptrs = kept_ptr + rows.to(tl.int64)[:, None] * (2 * N) + group[None, :]
    inside = (rows < S)[:, None] & (group < N)[None, :]
    tl.store(ptrs, _key(best, group[None, :] * GROUP + place), mask=inside)
    tl.store(ptrs + N, _key(second, group[None, :] * GROUP + second_place), mask=inside)


@triton.jit
def _open_kernel(ids_ptr, raw_ptr, edits, kept_ptr, keys_ptr, num_ids, N, V, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The keys of ids of open groups; none of an id that is kept, nor of one of no group, which is V or more."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + row * num_ids + n, mask=n < num_ids, other=V)
    x = tl.load(raw_ptr + row * num_ids + n, mask=n < num_ids, other=float("-inf"))
    if edits is not None:
        x = edit_row(edits, x, row, ids, V)
    key = _key(x, ids)
    second = tl.load(kept_ptr + row * (2 * N) + N + ids // GROUP, mask=ids < V, other=_NO_KEY)
    tl.store(keys_ptr + row * num_ids + n, tl.where(key < second, key, _NO_KEY), mask=n < num_ids)


@triton.jit
def _unpack_kernel(keys_ptr, ids_ptr, values_ptr, size, V, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + n, mask=n < size, other=0)
    order = (key >> 32).to(tl.int32)
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    tl.store(ids_ptr + n, tl.minimum((key & _LOW) ^ _LOW, V - 1), mask=n < size)  # beyond is what a row with nan kept
    tl.store(values_ptr + n, bits.to(tl.float32, bitcast=True), mask=n < size)


def group_size(k: int, vocab_size: int) -> int:
    """Ids of a group, from which best k are to be found."""
    group = MAX_GROUP
    while group > 2 and group * group * k > 4 * vocab_size:
        group //= 2
    return group


def empty_kept(head: Head, group: int) -> Tensor:
    """For `store_best` to fill."""
    shape = (head.num_rows, 2, triton.cdiv(head.vocab_size, group))
    return torch.empty(shape, dtype=torch.int64, device=head.hidden.device)


def best_keys(head: Head, edits: Edits | None, kept: Tensor | None, k: int) -> Tensor:
    """The k best keys of each row [S, k], the best first.  kept: None only if k is 0."""
    if kept is None:
        return torch.empty(head.num_rows, 0, dtype=torch.int64, device=head.hidden.device)
    group = group_size(k, head.vocab_size)
    best, places = kept.flatten(1).topk(k, dim=1)  # places of second bests come after all others
    num_open = k // 2
    if group == 2 or num_open == 0:
        return best
    ids = _ids_of_groups(places.topk(num_open, dim=1).values - kept.shape[2], group, head.vocab_size)
    more = torch.empty_like(ids)
    launch(
        _open_kernel,
        (head.num_rows, triton.cdiv(ids.shape[1], 1024)),
        ids, raw_of_ids(head, ids), edits, kept, more, ids.shape[1], kept.shape[2], head.vocab_size,
        GROUP=group, BLOCK=1024, num_warps=4, num_stages=1,
    )  # fmt: skip
    return torch.cat((best, more), dim=1).topk(k, dim=1).values


def _ids_of_groups(groups: Tensor, group: int, vocab_size: int) -> Tensor:
    """All ids [S, n * group] of groups [S, n]; ids beyond the vocabulary for a group below 0."""
    firsts = torch.where(groups >= 0, groups * group, vocab_size)
    return (firsts[:, :, None] + torch.arange(group, device=groups.device)).flatten(1)


def unpack(keys: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Ids, int64, and values, float32, of keys."""
    keys = keys.contiguous()
    ids, values = torch.empty_like(keys), torch.empty_like(keys, dtype=torch.float32)
    launch(
        _unpack_kernel, (triton.cdiv(keys.numel(), 1024),), keys, ids, values, keys.numel(), vocab_size,
        BLOCK=1024, num_warps=4, num_stages=1,
    )  # fmt: skip
    return ids, values
