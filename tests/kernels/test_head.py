"""head_topk, head_logits and token_logprobs: what sampling and scoring need of the head, in tiles of the vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.types import HeadTopK, LogitEdits
from support.edited_logits import apply_edits, edits_of
from support.poison import poisoned_memory
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend")

VOCAB = 17_001  # three tiles that race in a draw, of which the last one is not full


@pytest.fixture
def vocab(backend: str) -> int:
    """Three tiles that are computed at once, of which the last one is not full."""
    return 4_500 if backend == "triton" else 17_001


def head(
    num_rows: int = 6, vocab: int = VOCAB, channels: int = 24, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    return torch.randn(num_rows, channels).to(dtype), torch.randn(vocab, channels).to(dtype)


def rows_of(edits: LogitEdits, start: int, end: int) -> LogitEdits:
    """Edits of a part of the rows."""
    inside = (edits.rows >= start) & (edits.rows < end)
    return LogitEdits(
        rows=edits.rows[inside] - start,
        ids=edits.ids[inside],
        repetition=edits.repetition[inside],
        bias=edits.bias[inside],
        allowed=None if edits.allowed is None else edits.allowed[start:end],
    )


def only(allowed: Tensor) -> LogitEdits:
    """Edits that are a mask alone."""
    none = torch.zeros(0, dtype=torch.int64)
    return LogitEdits(rows=none, ids=none, repetition=torch.zeros(0), bias=torch.zeros(0), allowed=allowed)


def fields(result: HeadTopK) -> list[Tensor]:
    """All tensors of a result; those of a draw only if there is one."""
    values = [getattr(result, name) for name in HeadTopK.__dataclass_fields__]
    return [value for value in values if value is not None]


def uniforms_of(num_rows: int, vocab: int = VOCAB, channels: int = 24, *, seed: int = 0) -> Tensor:
    tiles = ops.num_vocab_tiles(vocab, channels)
    row = torch.arange(num_rows)
    return ops.random_uniform(row + seed, row * 0, row * 0, 0, 2 * tiles).view(num_rows, tiles, 2)


def test_logits_are_as_exact_as_torch(dtype, vocab):
    hidden, weight = head(40, vocab, dtype=dtype)
    raw, edited = ops.head_logits(hidden, weight)
    eager = hidden.float() @ weight.float().t()
    assert_as_good_as_torch(raw, eager, hidden.double() @ weight.double().t())
    assert torch.equal(raw, edited)


@pytest.mark.parametrize("channels", [24, 200])
def test_a_logit_is_the_same_number_as_in_matmul(dtype, vocab, channels):
    hidden, weight = head(6, vocab, channels, dtype)
    assert torch.equal(ops.head_logits(hidden, weight)[0], ops.matmul(hidden, weight, out_dtype=torch.float32))


def test_edits_and_temperature_are_applied_as_the_contract_says():
    hidden, weight = head(3, vocab=9000)
    edits, temperature = edits_of(3, 9000), torch.tensor([0.5, 1.0, 1.7])
    raw, edited = ops.head_logits(hidden, weight, edits=edits, temperature=temperature)
    assert torch.equal(edited, apply_edits(raw, edits) / temperature[:, None])


def test_the_soft_cap_comes_before_everything_else(vocab):
    hidden, weight = head(6, vocab)
    plain, _ = ops.head_logits(hidden, weight)
    capped, _ = ops.head_logits(hidden, weight, soft_cap=3.0)
    assert_as_good_as_torch(capped, 3.0 * torch.tanh(plain / 3.0), 3.0 * torch.tanh(plain.double() / 3.0))
    assert torch.equal(ops.head_topk(hidden, weight, k=1, soft_cap=3.0).raw[:, 0], capped.amax(1))


@pytest.mark.parametrize("k", [1, 2, 50, "all"])
@pytest.mark.parametrize("edited", [False, True])
def test_the_best_k_and_the_sums_are_those_of_the_full_logits(k, edited, vocab):
    k = vocab if k == "all" else k
    hidden, weight = head(4, vocab)
    edits = edits_of(4, vocab) if edited else None
    temperature = torch.tensor([0.3, 1.0, 0.9, 2.0]) if edited else None
    raw, values = ops.head_logits(hidden, weight, edits=edits, temperature=temperature)
    ours = ops.head_topk(hidden, weight, k=k, edits=edits, temperature=temperature, num_top=min(k, 7))
    expected, ids = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(ours.values, expected[:, :k])
    assert torch.equal(ours.ids, ids[:, :k])
    assert torch.equal(ours.raw, raw.gather(1, ours.ids))
    top, top_ids = raw.sort(dim=1, descending=True, stable=True)
    assert torch.equal(ours.top_raw, top[:, : min(k, 7)])
    assert torch.equal(ours.top_ids, top_ids[:, : min(k, 7)])
    for sums, full in ((ours.lse, values), (ours.raw_lse, raw)):
        assert_as_good_as_torch(sums, full.logsumexp(1), full.double().logsumexp(1))


@pytest.mark.parametrize("k", [1, 2, 33, 300])
@pytest.mark.parametrize("runs", [1, 2, 5, 40, 3000])
def test_the_best_k_are_exact_however_they_cluster(k, runs):
    """Values fall along runs of ids, so that many of the best stand side by side; each is equal to its neighbour."""
    vocab = 3000
    values = -(torch.arange(vocab) % -(-vocab // runs) // 2).float()
    weight = torch.stack((values, values.roll(17)), dim=1)
    ours = ops.head_topk(torch.eye(2), weight, k=k, num_top=k, temperature=torch.tensor([0.5, 1.0]))
    expected, ids = weight.t().sort(dim=1, descending=True, stable=True)
    assert torch.equal(ours.top_ids, ids[:, :k])
    assert torch.equal(ours.top_raw, expected[:, :k])
    assert torch.equal(ours.ids, ids[:, :k])
    assert torch.equal(ours.raw, expected[:, :k])


@pytest.mark.parametrize("k", [5, 100])
def test_entries_count_where_the_best_stand_side_by_side(k):
    vocab = 3000
    weight = torch.stack((-torch.arange(vocab) / 8.0, torch.arange(vocab) / 8.0), dim=1)
    ids = torch.cat((torch.randperm(400)[:150], vocab - 1 - torch.randperm(400)[:150]))
    bias = 8 * torch.randn(300)
    bias[::5] = -torch.inf
    edits = LogitEdits(rows=torch.arange(300) // 150, ids=ids, repetition=torch.rand(300) + 0.5, bias=bias)
    ours = ops.head_topk(torch.eye(2), weight, k=k, edits=edits)
    expected, best = apply_edits(weight.t(), edits).sort(dim=1, descending=True, stable=True)
    assert torch.equal(ours.ids, best[:, :k])
    assert torch.equal(ours.values, expected[:, :k])


@pytest.mark.parametrize("k", [1, 3, 40])
def test_among_equal_values_the_smaller_id_is_better_across_tiles_and_at_the_border(k):
    weight = torch.zeros(VOCAB, 1)
    winners = torch.tensor([4, 8191, 8192, 8200, 16383, 16384, 17_000])
    weight[winners] = 1.0
    ours = ops.head_topk(torch.ones(2, 1), weight, k=k, num_top=k)
    losers = torch.tensor([i for i in range(60) if i not in winners])
    expected = torch.cat((winners, losers))[:k]
    assert torch.equal(ours.ids, expected.expand(2, k))
    assert torch.equal(ours.top_ids, expected.expand(2, k))


def test_rows_with_fewer_allowed_ids_than_k_fill_up_with_the_first_forbidden_ones():
    hidden, weight = head(1, vocab=9000)
    allowed = torch.zeros(1, 282, dtype=torch.int32)
    allowed[0, 270] = 0b101  # ids 8640 and 8642
    ours = ops.head_topk(hidden, weight, k=4, edits=only(allowed))
    assert sorted(ours.ids[0, :2].tolist()) == [8640, 8642]
    assert ours.ids[0, 2:].tolist() == [0, 1]
    assert ours.values[0, 2:].tolist() == [-torch.inf] * 2
    assert torch.equal(ours.lse, ours.values[:, :2].logsumexp(1))


def test_a_log_probability_is_the_same_number_wherever_it_is_asked_for(dtype, vocab):
    hidden, weight = head(20, vocab, dtype=dtype)
    uniforms = uniforms_of(20, vocab)
    best = ops.head_topk(hidden, weight, k=3, num_top=3, uniforms=uniforms, temperature=torch.full((20,), 0.8))
    for targets, raw in ((best.ids[:, 2], best.raw[:, 2]), (best.drawn_ids, best.drawn_raw)):
        logprobs, top_ids, top_logprobs = ops.token_logprobs(hidden, weight, targets, num_top=3)
        assert torch.equal(logprobs, raw - best.raw_lse)
        assert torch.equal(top_ids, best.top_ids)
        assert torch.equal(top_logprobs, best.top_raw - best.raw_lse[:, None])


def test_the_log_sum_exp_of_raw_logits_is_one_number_whatever_else_is_asked_for(dtype):
    hidden, weight = head(6, vocab=3000, dtype=dtype)
    best = ops.head_topk(hidden, weight, k=1)
    lse = best.lse
    for options in ({"temperature": torch.rand(6) + 0.5}, {"edits": edits_of(6, 3000)}, {"num_top": 2}):
        assert torch.equal(ops.head_topk(hidden, weight, k=1, **options).raw_lse, lse)
    for num_top in (0, 3):
        logprobs, _, _ = ops.token_logprobs(hidden, weight, best.ids[:, 0], num_top=num_top)
        assert torch.equal(logprobs, best.raw[:, 0] - lse)


def test_log_probabilities_are_as_exact_as_torch(dtype, vocab):
    hidden, weight = head(30, vocab, dtype=dtype)
    targets = torch.randint(vocab, (30,))
    ours, _, _ = ops.token_logprobs(hidden, weight, targets)
    eager = (hidden.float() @ weight.float().t()).log_softmax(1)
    exact = (hidden.double() @ weight.double().t()).log_softmax(1)
    place = targets[:, None]
    assert_as_good_as_torch(ours, eager.gather(1, place)[:, 0], exact.gather(1, place)[:, 0])


def test_an_id_outside_the_vocabulary_is_impossible():
    hidden, weight = head(3)
    logprobs, _, _ = ops.token_logprobs(hidden, weight, torch.tensor([-1, VOCAB, 2**40]))
    assert logprobs.tolist() == [-torch.inf] * 3


def test_entries_for_ids_outside_the_vocabulary_change_nothing():
    hidden, weight = head(2, vocab=3000)
    inside = edits_of(2, 3000)
    ids = torch.cat((inside.ids, torch.tensor([-1, 3000, 2**40, 3071, 3072])))
    extra = torch.full((5,), 7.0)
    edits = replace(
        inside,
        rows=torch.cat((inside.rows, torch.tensor([1, 0, 0, 1, 0]))),
        ids=ids,
        repetition=torch.cat((inside.repetition, extra)),
        bias=torch.cat((inside.bias, extra)),
    )
    ours, expected = (ops.head_topk(hidden, weight, k=3000, edits=e, num_top=5) for e in (edits, inside))
    assert all(torch.equal(a, b) for a, b in zip(fields(ours), fields(expected), strict=True))


@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 8191, 8192, 8193])
def test_one_less_and_one_more_than_a_tile_is_fine(vocab):
    hidden, weight = head(2, vocab=vocab)
    ours = ops.head_topk(hidden, weight, k=vocab, uniforms=uniforms_of(2, vocab))
    raw, _ = ops.head_logits(hidden, weight)
    assert torch.equal(ours.values, raw.sort(dim=1, descending=True, stable=True).values)
    assert (ours.drawn_ids < vocab).all()


def test_no_rows_are_no_rows():
    hidden, weight = head(0)
    ours = ops.head_topk(hidden, weight, k=2, num_top=3, uniforms=uniforms_of(0), temperature=torch.ones(0))
    assert ours.ids.shape == (0, 2)
    assert ours.top_ids.shape == (0, 3)
    assert ops.token_logprobs(hidden, weight, torch.zeros(0, dtype=torch.int64))[0].shape == (0,)


def test_256_000_tokens_and_few_rows_are_fine():
    hidden, weight = head(2, vocab=256_000, channels=8)
    ours = ops.head_topk(hidden, weight, k=5, uniforms=uniforms_of(2, 256_000, 8))
    logits = hidden.double() @ weight.double().t()
    assert torch.equal(ours.ids, logits.topk(5).indices)
    assert_as_good_as_torch(ours.lse, logits.float().logsumexp(1), logits.logsumexp(1))


@pytest.mark.parametrize("edited", [False, True])
def test_draws_follow_the_distribution_over_all_tiles(edited, backend):
    # the 99.9 % point of chi-squared is at one degree of freedom less than there are bins
    num_rows, rounds, num_bins, limit = (64, 3, 16, 37.7) if backend == "triton" else (256, 16, 40, 72.1)
    hidden, weight = head(1, channels=4)
    hidden[0, 0], weight[:, 0] = (
        2.5,
        torch.arange(VOCAB) // 8192 - 1,
    )  # each tile's ids are e times likelier than the last's
    hidden, temperature = hidden.expand(num_rows, 4), torch.full((num_rows,), 2.5)
    edits = edits_of(1, VOCAB) if edited else None
    _, values = ops.head_logits(hidden[:1], weight, edits=edits, temperature=temperature[:1])
    if edits is not None:
        edits = replace(
            edits,
            rows=torch.arange(num_rows).repeat_interleave(len(edits.ids)),
            ids=edits.ids.repeat(num_rows),
            repetition=edits.repetition.repeat(num_rows),
            bias=edits.bias.repeat(num_rows),
            allowed=edits.allowed.expand(num_rows, -1),
        )
    probabilities = values[0].double().softmax(0)
    bins = (probabilities.cumsum(0) * num_bins).long().clamp(max=num_bins - 1)  # runs of ids, equally likely
    expected = torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, probabilities) * num_rows * rounds
    counts = torch.zeros(num_bins, dtype=torch.float64)
    for number in range(rounds):
        uniforms = uniforms_of(num_rows, channels=4, seed=number * num_rows)
        drawn = ops.head_topk(hidden, weight, k=1, edits=edits, temperature=temperature, uniforms=uniforms).drawn_ids
        assert (probabilities[drawn] > 0).all()
        counts += torch.bincount(bins[drawn], minlength=num_bins)
    assert ((counts - expected) ** 2 / expected).sum().item() < limit


def test_what_entries_forbid_is_not_drawn():
    num_rows, vocab = 12, 300
    hidden, weight = head(num_rows, vocab)
    forbidden = torch.rand(num_rows, vocab) < 0.95
    forbidden[:, 7] = False
    rows, ids = forbidden.nonzero(as_tuple=True)
    edits = LogitEdits(rows=rows, ids=ids, repetition=torch.ones(len(rows)), bias=torch.full((len(rows),), -torch.inf))
    for seed in (0, 100):
        uniforms = uniforms_of(num_rows, vocab, seed=seed)
        drawn = ops.head_topk(hidden, weight, k=1, edits=edits, uniforms=uniforms).drawn_ids
        assert not forbidden.gather(1, drawn[:, None]).any()


def test_nothing_is_drawn_where_nothing_is_allowed():
    hidden, weight = head(2, vocab=9000)
    allowed = torch.zeros(2, 282, dtype=torch.int32)
    allowed[1, 100] = 2
    ours = ops.head_topk(hidden, weight, k=1, edits=only(allowed), uniforms=uniforms_of(2, 9000))
    assert ours.drawn_ids.tolist() == [-1, 3201]
    assert ours.lse[0] == -torch.inf


def test_a_number_that_is_not_one_shows_in_the_log_sum_exp_of_its_row_alone():
    hidden, weight = head(4, vocab=5000)
    hidden[1, 3], hidden[2, 0] = torch.nan, torch.inf
    weight[:, 0] = weight[:, 0].abs()  # else a sum of inf and -inf would be nan
    options = {"temperature": torch.full((4,), 0.5), "uniforms": uniforms_of(4, 5000)}
    ours = ops.head_topk(hidden, weight, k=3, **options)
    logprobs, _, _ = ops.token_logprobs(hidden, weight, torch.zeros(4, dtype=torch.int64))
    for sums in (ours.lse, ours.raw_lse, logprobs):
        assert sums.isfinite().tolist() == [True, False, False, True]
    assert ours.drawn_ids[1] == -1
    assert ((ours.ids >= 0) & (ours.ids < 5000)).all()
    alone = ops.head_topk(hidden[3:], weight, k=3, temperature=torch.tensor([0.5]), uniforms=options["uniforms"][3:])
    assert all(torch.equal(a, b[3:]) for a, b in zip(fields(alone), fields(ours), strict=True))


def test_one_bad_weight_shows_in_every_row():
    hidden, weight = head(3, vocab=5000)
    weight[4321, 5] = torch.nan
    assert not ops.head_topk(hidden, weight, k=1).raw_lse.isfinite().any()


def test_rows_may_lie_apart_in_memory(dtype):
    hidden, weight = head(6, vocab=700, channels=40, dtype=dtype)
    apart = torch.cat((hidden, hidden + 1), dim=1)[:, :40], torch.cat((weight + 1, weight), dim=1)[:, 40:]
    edits = edits_of(6, 700)
    masks = torch.cat((edits.allowed, edits.allowed), dim=1)[:, : edits.allowed.shape[1]]
    ours = ops.head_topk(*apart, k=5, num_top=5, edits=replace(edits, allowed=masks), uniforms=uniforms_of(6, 700))
    expected = ops.head_topk(hidden, weight, k=5, num_top=5, edits=edits, uniforms=uniforms_of(6, 700))
    assert all(torch.equal(a, b) for a, b in zip(fields(ours), fields(expected), strict=True))


def test_every_element_is_written():
    hidden, weight = head(3, vocab=2100)
    edits, temperature = edits_of(3, 2100), torch.rand(3) + 0.5
    targets = torch.tensor([0, 2099, 5000])

    def everything() -> list[Tensor]:
        options = {"k": 200, "num_top": 9, "uniforms": uniforms_of(3, 2100)}
        return [
            *fields(ops.head_topk(hidden, weight, **options)),
            *fields(ops.head_topk(hidden, weight, edits=edits, temperature=temperature, **options)),
            *ops.head_logits(hidden, weight, edits=edits),
            *ops.token_logprobs(hidden, weight, targets, num_top=9),
        ]

    with poisoned_memory():
        poisoned = everything()
    assert all(torch.equal(a, b) for a, b in zip(poisoned, everything(), strict=True))


def test_a_row_has_the_same_bits_in_any_company(dtype, threads, vocab):
    num_rows = 9
    hidden, weight = head(num_rows, vocab, 72, dtype)
    edits, temperature = edits_of(num_rows, vocab), torch.rand(num_rows) + 0.2
    uniforms, targets = uniforms_of(num_rows, vocab, 72), torch.randint(vocab, (num_rows,))
    together = ops.head_topk(
        hidden, weight, k=20, edits=edits, temperature=temperature, uniforms=uniforms, num_top=5, soft_cap=20.0
    )
    scored = ops.token_logprobs(hidden, weight, targets, num_top=5, soft_cap=20.0)
    for start, end in ((0, 1), (3, 7), (8, 9)):
        rows = slice(start, end)
        alone = ops.head_topk(
            hidden[rows], weight, k=20, edits=rows_of(edits, start, end), temperature=temperature[rows],
            uniforms=uniforms[rows], num_top=5, soft_cap=20.0,
        )  # fmt: skip
        assert all(torch.equal(a, b[rows]) for a, b in zip(fields(alone), fields(together), strict=True))
        logprobs = ops.token_logprobs(hidden[rows], weight, targets[rows], num_top=5, soft_cap=20.0)
        assert all(torch.equal(a, b[rows]) for a, b in zip(logprobs, scored, strict=True))


def test_a_row_has_the_same_bits_among_more_rows_than_a_tile_has(dtype):
    hidden, weight = head(130, vocab=5000, channels=72, dtype=dtype)
    targets = torch.randint(5000, (130,))
    together = ops.head_topk(hidden, weight, k=1)
    scored, _, _ = ops.token_logprobs(hidden, weight, targets)
    logits, _ = ops.head_logits(hidden, weight)
    for rows in (slice(0, 1), slice(60, 126), slice(129, 130)):
        alone = ops.head_topk(hidden[rows], weight, k=1)
        assert all(torch.equal(a, b[rows]) for a, b in zip(fields(alone), fields(together), strict=True))
        assert torch.equal(ops.token_logprobs(hidden[rows], weight, targets[rows])[0], scored[rows])
        assert torch.equal(ops.head_logits(hidden[rows], weight)[0], logits[rows])
