"""AdamW is torch's, a skipped step is nothing, and small steps of bf16 weights add up."""

import pytest
import torch
from torch import nn

from polyserve_training.config import OptimizerRecipe, SpikeRecipe
from polyserve_training.optimizer import AdamW
from polyserve_training.spikes import SpikeGuard

YES, NO = torch.tensor(True), torch.tensor(False)


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(8, 5, generator=numbers).to(dtype))
        self.bias = nn.Parameter(torch.randn(8, generator=numbers))
        for parameter in self.parameters():
            parameter.grad_dtype = torch.float32


def gradients(model: Small, number: int) -> None:
    numbers = torch.Generator().manual_seed(number + 1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=numbers)


def bits(optimizer: AdamW) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in optimizer.state().items()}


@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_are_those_of_torchs_adamw(clip):
    ours, theirs = Small(torch.float32), Small(torch.float64)
    theirs.bias.data = theirs.bias.data.double()
    optimizer = AdamW(ours, OptimizerRecipe(lr=1.0, weight_decay=0.1, clip=clip))
    groups = [{"params": [theirs.matrix], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    for parameter in theirs.parameters():
        parameter.grad_dtype = None
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for number in range(5):
        gradients(ours, number)
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            its.grad = mine.grad.double()
        if clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (number + 1)
        reference.step()
        optimizer.step(lr=0.01 * (number + 1), norm=optimizer.gradient_norm(), keep=YES)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1.0])
def test_a_step_that_is_not_kept_changes_nothing(number):
    model = Small(torch.bfloat16)
    optimizer = AdamW(model, OptimizerRecipe(lr=1.0))
    for kept in range(2):  # also before the first step that is kept
        before, weights = bits(optimizer), model.matrix.detach().clone()
        gradients(model, 1)
        model.matrix.grad[0, 0] = number
        optimizer.step(lr=0.1, norm=optimizer.gradient_norm(), keep=NO)
        assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())
        assert torch.equal(model.matrix, weights)
        gradients(model, 2 + kept)
        optimizer.step(lr=0.1, norm=optimizer.gradient_norm(), keep=YES)
    assert float(optimizer.num_kept) == 2


def test_steps_that_bfloat16_cannot_show_add_up():
    model = Small(torch.bfloat16)
    optimizer = AdamW(model, OptimizerRecipe(lr=1.0, weight_decay=0.0))
    start = model.matrix.detach().clone()
    for _ in range(300):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter, dtype=torch.float32)
        optimizer.step(lr=1e-4, norm=optimizer.gradient_norm(), keep=YES)
    moved = (start.float() - model.matrix.detach().float()).mean()
    assert float(moved) == pytest.approx(0.03, rel=0.1)


def judged(guard: SpikeGuard, losses: list[float]) -> list[bool]:
    one = torch.tensor(1.0)
    return [bool(guard.judge(step, torch.tensor(loss), one)) for step, loss in enumerate(losses)]


def test_a_loss_that_stands_out_is_not_kept_and_the_next_ones_are():
    losses = [2.0 + 0.01 * (step % 3) for step in range(20)]
    losses[15] = 3.0
    kept = judged(SpikeGuard(SpikeRecipe(window=8), torch.device("cpu")), losses)
    assert kept == [step != 15 for step in range(20)]


def test_nothing_stands_out_before_half_a_window_or_where_that_is_turned_off():
    losses = [2.0, 2.0, 2.0, 50.0]
    assert all(judged(SpikeGuard(SpikeRecipe(window=8), torch.device("cpu")), losses))
    assert all(judged(SpikeGuard(SpikeRecipe(window=2, sigmas=None), torch.device("cpu")), losses))


def test_what_is_not_finite_is_never_kept_and_not_remembered():
    for recipe in (SpikeRecipe(window=4), SpikeRecipe(window=4, sigmas=None)):
        losses = [2.0, 2.1, float("nan"), 2.0, float("inf"), 2.1, 2.05]
        kept = judged(SpikeGuard(recipe, torch.device("cpu")), losses)
        assert kept == [True, True, False, True, False, True, True]


def test_a_level_that_stays_higher_becomes_the_new_one():
    losses = [2.0 + 0.01 * (step % 3) for step in range(16)] + [4.0 + 0.01 * (step % 3) for step in range(16)]
    kept = judged(SpikeGuard(SpikeRecipe(window=8), torch.device("cpu")), losses)
    assert not kept[16]
    assert all(kept[20:])


def test_a_weight_that_is_part_of_a_wider_tensor_steps_as_one_by_itself():
    """A column of a weight that processes divide lies so."""
    alone, part = Small(torch.float32), Small(torch.float32)
    wide = torch.zeros(8, 9)
    wide[:, 2:7] = part.matrix.detach()
    part.matrix = nn.Parameter(wide[:, 2:7])
    for model in (alone, part):
        optimizer = AdamW(model, OptimizerRecipe(lr=0.1))
        gradients(model, 0)
        model.matrix.grad = model.matrix.grad.t().contiguous().t()  # and gradients may lie otherwise
        optimizer.step(lr=0.1, norm=optimizer.gradient_norm(), keep=YES)
    assert torch.equal(alone.matrix, part.matrix)
    assert (wide[:, :2] == 0).all()
    assert (wide[:, 7:] == 0).all()
