"""linear_cross_entropy: the loss of hidden states under a large vocabulary, and its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from polyserve_kernels import ops
from polyserve_kernels.cpu import linear_cross_entropy as cpu
from polyserve_kernels.reference import linear_cross_entropy as reference
from polyserve_kernels.triton import linear_cross_entropy as triton
from support.poison import poisoned_memory
from support.tolerance import assert_as_good_as_torch
from support.vocab_parallel import Case, Trained, in_processes, trained

pytestmark = pytest.mark.usefixtures("backend")

IGNORED = -100
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "z-loss": {"z_loss": 0.1},
    "soft cap": {"soft_cap": 5.0},
    "z-loss and soft cap": {"z_loss": 0.02, "soft_cap": 9.0},
}


def head(
    num_rows: int = 20, vocab: int = 1030, channels: int = 40, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a weight whose logits are well spread, and targets, one of them ignored."""
    hidden, weight = torch.randn(num_rows, channels).to(dtype), (3 * torch.randn(vocab, channels)).to(dtype)
    targets = torch.randint(vocab, (num_rows,))
    targets[num_rows // 3 : num_rows // 3 + 1] = IGNORED
    return hidden, weight / channels**0.5, targets


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0, soft_cap: float | None = None
) -> Tensor:
    """The losses in plain torch: products in the operands' dtype, the rest in float32, or float64 for float64."""
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    return losses + z_loss * logits.logsumexp(1).square().masked_fill(targets == IGNORED, 0.0)


def assert_as_good(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> None:
    ours = trained(ops.linear_cross_entropy, hidden, weight, targets, **options)
    eager = trained(plain, hidden, weight, targets, **options)
    exact = trained(plain, hidden.double(), weight.double(), targets, **options)
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert_as_good_as_torch(a, b, c)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many chunks of rows and ids as a large batch has, of sizes that divide nothing."""
    monkeypatch.setattr(reference, "ROWS", 7)
    monkeypatch.setattr(reference, "VOCAB_TILE", 512)
    monkeypatch.setattr(cpu, "ROWS", 7)
    monkeypatch.setattr(cpu, "IDS", 300)
    monkeypatch.setattr(triton, "ROWS", 11)
    monkeypatch.setattr(triton, "IDS", 300)
    monkeypatch.setattr(triton, "MAX_ROWS", 13)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_losses_and_gradients_are_as_exact_as_torch(dtype, options):
    assert_as_good(*head(dtype=dtype), **options)


@pytest.mark.parametrize("vocab", [1, 2, 127, 129, 1023, 1025])
def test_a_vocabulary_of_any_size_is_fine(vocab):
    assert_as_good(*head(vocab=vocab, dtype=torch.bfloat16), z_loss=0.1)


@pytest.mark.parametrize("num_rows", [1, 63, 65, 127, 129])
def test_any_number_of_rows_is_fine(num_rows):
    assert_as_good(*head(num_rows, 130, dtype=torch.bfloat16))


@pytest.mark.parametrize("channels", [1, 63, 65, 128])
def test_any_number_of_channels_is_fine(channels):
    assert_as_good(*head(20, 130, channels, dtype=torch.bfloat16))


@pytest.mark.usefixtures("small_chunks")
def test_many_chunks_are_as_exact_as_torch(dtype):
    assert_as_good(*head(dtype=dtype), z_loss=0.1, soft_cap=9.0)


def test_losses_do_not_depend_on_chunks(request, dtype):
    hidden, weight, targets = head(dtype=dtype)
    whole = ops.linear_cross_entropy(hidden, weight, targets)
    request.getfixturevalue("small_chunks")
    assert torch.equal(ops.linear_cross_entropy(hidden, weight, targets), whole)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_a_loss_is_the_negative_of_the_log_probability_that_is_served(dtype, soft_cap):
    hidden, weight, targets = head(dtype=dtype)
    targets[:3] = torch.tensor([-5, 1030, 1029])
    served, _, _ = ops.token_logprobs(hidden, weight, targets, soft_cap=soft_cap)
    losses = ops.linear_cross_entropy(hidden, weight, targets, ignore_index=-1, soft_cap=soft_cap)
    assert torch.equal(losses, -served)
    assert losses[:2].tolist() == [torch.inf] * 2


def test_a_loss_has_the_same_bits_in_any_company(dtype):
    hidden, weight, targets = head(70, dtype=dtype)
    together = ops.linear_cross_entropy(hidden, weight, targets, z_loss=0.1)
    for rows in (slice(0, 1), slice(3, 68), slice(69, 70)):
        alone = ops.linear_cross_entropy(hidden[rows], weight, targets[rows], z_loss=0.1)
        assert torch.equal(alone, together[rows])


def test_two_runs_give_the_same_bits(dtype):
    args = head(dtype=dtype)
    first = trained(ops.linear_cross_entropy, *args, z_loss=0.1)
    assert same(trained(ops.linear_cross_entropy, *args, z_loss=0.1), first)


def test_a_row_that_is_ignored_loses_nothing_and_teaches_nothing():
    hidden, weight, targets = head()
    targets[:5] = 7  # an id of the vocabulary can be the one that is ignored
    losses, d_hidden, d_weight = trained(ops.linear_cross_entropy, hidden, weight, targets, ignore_index=7, z_loss=0.1)
    assert losses[:5].tolist() == [0.0] * 5
    assert not d_hidden[:5].any()
    hidden[:5] = 1000.0
    assert torch.equal(
        trained(ops.linear_cross_entropy, hidden, weight, targets, ignore_index=7, z_loss=0.1)[2], d_weight
    )


@pytest.mark.parametrize("bad", [-1, 1030, 1031, 2**32 + 5, -(2**63), 2**63 - 1])
def test_an_id_that_there_is_not_costs_infinity_and_teaches_nothing(bad):
    hidden, weight, targets = head(4)
    targets[2] = IGNORED
    expected = trained(ops.linear_cross_entropy, hidden, weight, targets, z_loss=0.1)
    targets[2] = bad
    losses, d_hidden, d_weight = trained(ops.linear_cross_entropy, hidden, weight, targets, z_loss=0.1)
    assert losses[2] == torch.inf
    losses[2] = 0.0
    assert same((losses, d_hidden, d_weight), expected)


def test_no_rows_and_only_ignored_rows_give_zeros():
    hidden, weight, _ = head()
    for num_rows in (0, 20):
        targets = torch.full((num_rows,), IGNORED)
        losses, d_hidden, d_weight = trained(ops.linear_cross_entropy, hidden[:num_rows], weight, targets)
        assert losses.tolist() == [0.0] * num_rows
        assert d_hidden.shape == (num_rows, 40)
        assert not d_hidden.any()
        assert d_weight.shape == (1030, 40)
        assert not d_weight.any()


def test_strides_change_nothing(dtype):
    hidden, weight, targets = head(dtype=dtype)
    strided = torch.cat((hidden, hidden), dim=1)[:, :40], weight.t().contiguous().t(), targets.repeat_interleave(2)[::2]
    whole = ops.linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(ops.linear_cross_entropy(*strided), whole)
    assert_as_good(*strided)
    assert_as_good(hidden, weight, targets[:1].expand(20))


def test_a_gradient_that_is_one_number_for_all_rows_is_fine():
    hidden, weight, targets = head()
    hidden.requires_grad_()
    ops.linear_cross_entropy(hidden, weight, targets).sum().backward()
    (expected,) = torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, targets), hidden, torch.ones(20))
    assert torch.equal(hidden.grad, expected)


def test_only_the_gradients_that_are_wanted_are_computed():
    hidden, weight, targets = head()
    _, d_hidden, d_weight = trained(ops.linear_cross_entropy, hidden, weight, targets)
    for wanted, expected in ((hidden, d_hidden), (weight, d_weight)):
        wanted.requires_grad_()
        losses = ops.linear_cross_entropy(hidden, weight, targets)
        assert torch.equal(torch.autograd.grad(losses, wanted, torch.linspace(-1, 1.5, 20))[0], expected)
        wanted.requires_grad_(False)


@pytest.mark.usefixtures("small_chunks")
def test_the_gradient_of_a_weight_can_be_had_unrounded():
    hidden, weight, targets = head(dtype=torch.bfloat16)
    _, _, rounded = trained(ops.linear_cross_entropy, hidden, weight, targets)
    weight.requires_grad_().grad_dtype = torch.float32
    losses = ops.linear_cross_entropy(hidden, weight, targets)
    losses.backward(torch.linspace(-1, 1.5, 20))
    assert weight.grad.dtype == torch.float32
    assert not torch.equal(weight.grad, rounded.float())
    assert torch.equal(weight.grad.bfloat16(), rounded)


def test_many_chunks_of_rows_add_up_in_float32(monkeypatch):
    monkeypatch.setattr(reference, "ROWS", 1)
    monkeypatch.setattr(cpu, "ROWS", 1)
    monkeypatch.setattr(triton, "ROWS", 1)
    hidden, weight, targets = head(40, vocab=130, dtype=torch.bfloat16)
    assert_as_good(hidden.abs(), weight, targets)  # each row moves the weight the same way


@pytest.mark.usefixtures("small_chunks")
def test_nothing_is_left_unwritten(dtype):
    args = head(dtype=dtype)
    expected = trained(ops.linear_cross_entropy, *args, soft_cap=9.0)
    with poisoned_memory():
        assert same(trained(ops.linear_cross_entropy, *args, soft_cap=9.0), expected)


def test_256_000_tokens_and_few_rows_are_fine():
    assert_as_good(*head(20, 256_000, 4))


@pytest.fixture(scope="module")
def shared_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], list[dict[str, list[Trained]]]]:
    """Cases, and what two processes that share their vocabulary get for each, and then for each again."""
    torch.manual_seed(0)
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("plain", "z-loss and soft cap"):
            hidden, weight, targets = head(vocab=258, dtype=dtype)
            targets[:4] = torch.tensor([0, 128, 129, 257])  # the ends of both parts
            cases.append(Case(hidden, weight, targets, OPTIONS[name]))
        cases.append(Case(hidden, weight, torch.tensor([-1, 258, 1000]).repeat(7)[:20]))
    return cases, in_processes(
        2, [*cases, *cases], ["cpu", "reference", "triton"], tmp_path_factory.mktemp("processes")
    )


def test_processes_that_share_a_vocabulary_learn_what_one_would(backend, shared_by_two):
    cases, by_rank = shared_by_two
    for number, case in enumerate(cases):
        (losses, d_hidden, d_part), (other_losses, other_d_hidden, other_d_part) = (x[backend][number] for x in by_rank)
        assert torch.equal(losses, other_losses)
        assert torch.equal(d_hidden, other_d_hidden)
        if case.targets.max() >= 258:  # ids that there are not
            assert losses.tolist() == [torch.inf] * 20
            assert not any(x.any() for x in (d_hidden, d_part, other_d_part))
            continue
        eager = trained(plain, case.hidden, case.weight, case.targets, **case.options)
        exact = trained(plain, case.hidden.double(), case.weight.double(), case.targets, **case.options)
        for a, b, c in zip((losses, d_hidden, torch.cat((d_part, other_d_part))), eager, exact, strict=True):
            assert_as_good_as_torch(a, b, c)


def test_two_runs_of_processes_give_the_same_bits(backend, shared_by_two):
    cases, by_rank = shared_by_two
    for results in by_rank:
        for first, again in zip(results[backend][: len(cases)], results[backend][len(cases) :], strict=True):
            assert same(first, again)


def test_a_process_that_shares_with_nobody_gets_the_bits_of_one_alone():
    args, options = head(vocab=258), OPTIONS["z-loss and soft cap"]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        ours = trained(ops.linear_cross_entropy, *args, group=distributed.group.WORLD, **options)
    finally:
        distributed.destroy_process_group()
    assert same(ours, trained(ops.linear_cross_entropy, *args, **options))
