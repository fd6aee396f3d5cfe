"""A test of the tests: bugs planted in the kernels of the head are caught by the rules of the contracts' tests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.triton import head as logits
from polyserve_kernels.triton import linear_cross_entropy as loss
from polyserve_kernels.triton import logit_edits, sampling, vocab_best, vocab_draw, vocab_fold, vocab_scan
from polyserve_kernels.triton.launch import INTERPRETED, launch
from support.edited_logits import apply_edits, edits_of
from support.tolerance import assert_as_good_as_torch
from support.vocab_parallel import trained

pytestmark = [
    pytest.mark.usefixtures("backend", "poisoned"),
    pytest.mark.parametrize("backend", ["triton"], indirect=True),
    pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled from"),
]

ROWS, VOCAB, CHANNELS = 20, 4499, 24
CAP, TEMPERATURE = 6.0, 0.7


@pytest.fixture(autouse=True)
def _several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows and of ids, so that there is one to drop."""
    for module, name, value in ((sampling, "MAX_ROWS", 13), (loss, "ROWS", 13), (loss, "IDS", 2048)):
        monkeypatch.setattr(module, name, value)


def inputs() -> tuple[Tensor, Tensor]:
    """The last id is the best, what lies behind it would be better still, and the next best ones stand side by side."""
    hidden, weight = torch.randn(ROWS, CHANNELS), torch.randn(VOCAB + 1, CHANNELS) / CHANNELS**0.5
    hidden[:, 0] = 1.0
    weight[-2:, 0] = torch.tensor([6.0, 9.0])
    weight[100:120, 0] = 4.0
    return hidden, weight[:VOCAB]


def capped(hidden: Tensor, weight: Tensor) -> Tensor:
    return CAP * torch.tanh(hidden @ weight.t() / CAP)


def best_and_draws() -> None:
    hidden, weight = inputs()
    edits, temperature = edits_of(ROWS, VOCAB), torch.full((ROWS,), TEMPERATURE)
    uniforms = torch.rand(ROWS, ops.num_vocab_tiles(VOCAB, CHANNELS), 2)
    options: dict[str, Any] = {"edits": edits, "temperature": temperature, "uniforms": uniforms, "soft_cap": CAP}
    ours = ops.head_topk(hidden, weight, k=40, num_top=9, **options)
    eager, exact = capped(hidden, weight), capped(hidden.double(), weight.double())
    eager_edited, exact_edited = (apply_edits(x, edits) / TEMPERATURE for x in (eager, exact))
    assert torch.equal(ours.top_ids, exact.topk(9).indices)
    assert torch.equal(ours.ids, exact_edited.topk(40).indices)
    for found, plain, true in (
        (ours.raw, eager.gather(1, ours.ids), exact.gather(1, ours.ids)),
        (ours.values, eager_edited.gather(1, ours.ids), exact_edited.gather(1, ours.ids)),
        (ours.lse, eager_edited.logsumexp(1), exact_edited.logsumexp(1)),
        (ours.raw_lse, eager.logsumexp(1), exact.logsumexp(1)),
    ):
        assert_as_good_as_torch(found, plain, true)
    with use_backend("reference"):
        assert torch.equal(ours.drawn_ids, ops.head_topk(hidden, weight, k=1, **options).drawn_ids)


def scores() -> None:
    hidden, weight = inputs()
    targets = torch.randint(VOCAB, (ROWS,))
    targets[:3] = torch.tensor([0, VOCAB - 1, 2048])
    found, top_ids, top = ops.token_logprobs(hidden, weight, targets, num_top=9, soft_cap=CAP)
    eager, exact = (capped(h, w).log_softmax(1) for h, w in ((hidden, weight), (hidden.double(), weight.double())))
    assert torch.equal(top_ids, exact.topk(9).indices)
    assert_as_good_as_torch(top, eager.gather(1, top_ids), exact.gather(1, top_ids))
    place = targets[:, None]
    assert_as_good_as_torch(found, eager.gather(1, place)[:, 0], exact.gather(1, place)[:, 0])


def losses_and_gradients() -> None:
    hidden, weight = inputs()
    targets = torch.randint(VOCAB, (ROWS,))
    targets[:4] = torch.tensor([0, -100, VOCAB - 1, 2048])

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(capped(hidden, weight), targets, reduction="none")

    ours = trained(partial(ops.linear_cross_entropy, soft_cap=CAP), hidden, weight, targets)
    eager = trained(plain, hidden, weight, targets)
    exact = trained(plain, hidden.double(), weight.double(), targets)
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert_as_good_as_torch(a, b, c)


def without_the_last_tile(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    launch(kernel, (grid[0], grid[1] - 1), *args, **options)


true_tile = vocab_fold.logit_tile
true_sums, true_best = vocab_fold.store_sums, vocab_best.store_best
true_edit_tile, true_edit_row = logit_edits.edit_tile, logit_edits.edit_row
true_units, true_cdf, true_share = vocab_fold.exponential_units, vocab_draw._inverse_cdf, vocab_fold.share_units
true_raw_of_ids, true_gradients, true_chunks = logits.raw_of_ids, loss._write_logit_gradients, loss.chunks


@triton.jit
def without_the_last_id(
    hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, soft_cap,
    CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    return true_tile(
        hidden_ptr, weight_ptr, rows, ids, S, V - 1, C, hidden_stride, weight_stride, soft_cap,
        CAPPED, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
    )  # fmt: skip


@triton.jit
def with_an_id_too_many(
    hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, soft_cap,
    CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    return true_tile(
        hidden_ptr, weight_ptr, rows, ids, S, V + 1, C, hidden_stride, weight_stride, soft_cap,
        CAPPED, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
    )  # fmt: skip


@triton.jit
def without_the_cap(
    hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, soft_cap,
    CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    return true_tile(
        hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, soft_cap,
        False, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
    )  # fmt: skip


@triton.jit
def sums_of_the_next_part(parts_ptr, x, rows, first_part, S, P, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    true_sums(parts_ptr, x, rows, first_part + (first_part > 0).to(tl.int32), S, P, BLOCK_M, BLOCK_N)


@triton.jit
def sums_without_the_first_part(sums, m, row_m):
    units = true_share(sums, m, row_m)
    n = tl.arange(0, units.shape[1])[None, :]
    return tl.where((n == 0) & (units >= 0), 0, units)


@triton.jit
def best_of_the_next_group(
    kept_ptr, x, rows, first, S, V, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    true_best(kept_ptr, x, rows, first + GROUP, S, V, GROUP, BLOCK_M, BLOCK_N)


@triton.jit
def without_bias(edits, raw, entry, there):
    repetition = tl.load(edits.repetition + entry, mask=there, other=1.0)
    return tl.where(raw > 0, tl.div_rn(raw, repetition), raw * repetition)


@triton.jit
def rewarding_repetition(edits, raw, entry, there):
    repetition = tl.load(edits.repetition + entry, mask=there, other=1.0)
    return tl.div_rn(raw, repetition) + tl.load(edits.bias + entry, mask=there, other=0.0)


@triton.jit
def edits_of_the_next_part(edits, raw, rows, first, S, V, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return true_edit_tile(edits, raw, rows, first + 128, S, V, BLOCK_M, BLOCK_N)


@triton.jit
def edits_of_the_next_id(edits, raw, row, ids, V):
    return true_edit_row(edits, raw, row, ids + 1, V)


@triton.jit
def the_id_after_the_drawn_one(units, u):
    place, rest = true_cdf(units, u)
    return place + 1, rest


@triton.jit
def draws_from_raw_weights(x, m):
    return true_units(tl.where(x == float("-inf"), m, x), m)


def of_the_next_ids(head: logits.Head, ids: Tensor) -> Tensor:
    return true_raw_of_ids(head, ids + 1)


def as_if_first(d: Tensor, head: logits.Head, targets: Tensor, slopes: Any, _: int) -> None:
    true_gradients(d, head, targets, slopes, 0)


def without_the_last_chunk(size: int, step: int) -> list[slice]:
    return list(true_chunks(size, step))[:-1]


def instead_of_adding(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.copy_(a @ b)


Rule = Callable[[], None]
PLANTED: dict[str, tuple[Any, str, Any, Rule]] = {
    "the last tile is dropped": (vocab_scan, "launch", without_the_last_tile, best_and_draws),
    "the last tile is dropped in scoring": (vocab_scan, "launch", without_the_last_tile, scores),
    "the last tile is dropped in training": (vocab_scan, "launch", without_the_last_tile, losses_and_gradients),
    "the last id is masked": (logits, "logit_tile", without_the_last_id, best_and_draws),
    "the last id is masked in scoring": (logits, "logit_tile", without_the_last_id, scores),
    "the last id is masked in training": (logits, "logit_tile", without_the_last_id, losses_and_gradients),
    "an id behind the last one counts": (logits, "logit_tile", with_an_id_too_many, best_and_draws),
    "an id behind the last one counts in scoring": (logits, "logit_tile", with_an_id_too_many, scores),
    "an id behind the last one counts in training": (logits, "logit_tile", with_an_id_too_many, losses_and_gradients),
    "the soft cap is dropped": (logits, "logit_tile", without_the_cap, best_and_draws),
    "the soft cap is dropped in scoring": (logits, "logit_tile", without_the_cap, scores),
    "the soft cap is dropped in training": (logits, "logit_tile", without_the_cap, losses_and_gradients),
    "sums are the next part's": (vocab_scan, "store_sums", sums_of_the_next_part, scores),
    "the first part is not in the sum": (vocab_fold, "share_units", sums_without_the_first_part, scores),
    "ids are the next group's": (vocab_scan, "store_best", best_of_the_next_group, best_and_draws),
    "ids are the next group's in scoring": (vocab_scan, "store_best", best_of_the_next_group, scores),
    "logits are the next id's": (vocab_scan, "raw_of_ids", of_the_next_ids, scores),
    "logits of the best are the next id's": (sampling, "raw_of_ids", of_the_next_ids, best_and_draws),
    "open groups hold the next ids": (vocab_best, "raw_of_ids", of_the_next_ids, best_and_draws),
    "biases are dropped": (logit_edits, "_change", without_bias, best_and_draws),
    "repetition makes what is unlikely likelier": (logit_edits, "_change", rewarding_repetition, best_and_draws),
    "edits are the next part's": (vocab_scan, "edit_tile", edits_of_the_next_part, best_and_draws),
    "edits of open groups are the next id's": (vocab_best, "edit_row", edits_of_the_next_id, best_and_draws),
    "edits are the next id's in draws": (vocab_draw, "edit_row", edits_of_the_next_id, best_and_draws),
    "the next id is drawn": (vocab_draw, "_inverse_cdf", the_id_after_the_drawn_one, best_and_draws),
    "forbidden ids are drawn": (vocab_draw, "exponential_units", draws_from_raw_weights, best_and_draws),
    "gradients of later tiles are the first one's": (loss, "_write_logit_gradients", as_if_first, losses_and_gradients),
    "the last chunk is not in the gradients": (loss, "chunks", without_the_last_chunk, losses_and_gradients),
    "chunks replace each other": (loss, "_add_product", instead_of_adding, losses_and_gradients),
}


@pytest.mark.parametrize("rule", [best_and_draws, scores, losses_and_gradients])
def test_kernels_without_planted_bugs_pass(rule):
    rule()


@pytest.mark.parametrize("bug", PLANTED)
def test_it_is_caught(bug, monkeypatch):
    place, name, wrong, rule = PLANTED[bug]
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError):
        rule()
