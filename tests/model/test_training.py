"""A step of training through the one decoder: every family learns from packed sequences what `transformers` learns.

The step itself is AdamW's, with an eps of the size of gradients: with a small one it takes little but their signs, and
the sign of a gradient that is nearly 0 is a matter of rounding, in torch as in ours.
"""

import copy
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from polyserve.model.decoder import Decoder
from polyserve.model.forward_context import PackedContext
from polyserve.model.weights.load import load_model
from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from support.checkpoints import FAMILIES, Family, Sizes, save, tiny_model
from support.logits import random_ids
from support.tolerance import assert_as_good_as_torch

SIZES = Sizes(num_layers=2)
LENGTHS = (21, 1, 10)
LAST = -100  # a sequence's last token is followed by none


class InFloat64(TorchFunctionMode):
    """Computes in float64 what asks for float32: softmaxes, norms and rotary positions of `transformers`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return function(*args, **kwargs)


def targets_of(sequence: list[int]) -> list[int]:
    return [*sequence[1:], LAST]


def learn(model: Decoder, sequences: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of every token, and the gradient of every parameter."""
    bounds = torch.tensor([0, *accumulate(map(len, sequences))], dtype=torch.int32)
    positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    hidden = model(torch.tensor([*chain(*sequences)]), positions, PackedContext(bounds))
    targets = torch.tensor([*chain(*map(targets_of, sequences))])
    losses = ops.linear_cross_entropy(hidden, model.head_weight, targets, soft_cap=model.config.final_soft_cap)
    losses.sum().backward()
    return losses.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def learn_with_transformers(model: PreTrainedModel, sequences: list[list[int]]) -> tuple[Tensor, PreTrainedModel]:
    """The same in plain torch, each sequence alone. Gradients come as a model that has them in place of weights."""
    model = copy.deepcopy(model).requires_grad_()
    logits = torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in sequences])
    losses = F.cross_entropy(logits, torch.tensor([*chain(*map(targets_of, sequences))]), reduction="none")
    losses.sum().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    return losses.detach(), model


def in_our_layout(gradients: PreTrainedModel, folder: Path, family: Family) -> dict[str, Tensor]:
    """Gradients by the names of our parameters: they go the way of weights, through a checkpoint."""
    loaded = dict(load_model(save(gradients, folder, family=family), dtype=torch.float32).named_parameters())
    plus_one = family == "gemma3"  # which loading adds to norm weights
    return {name: x - 1 if plus_one and "norm" in name else x for name, x in loaded.items()}


def step(parameters: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters after a step of AdamW, which starts from them and these gradients."""
    moved = {name: x.detach().clone().requires_grad_() for name, x in parameters.items()}
    for name, x in moved.items():
        x.grad = grads[name].to(x.dtype)
    torch.optim.AdamW(moved.values(), lr=0.1, eps=1.0, weight_decay=0.1).step()
    return {name: x.detach() for name, x in moved.items()}


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_learns_what_transformers_learns(family: Family, backend: str, tmp_path: Path) -> None:
    theirs = tiny_model(family, sizes=SIZES)
    ours = load_model(save(theirs, tmp_path / "model", family=family), dtype=torch.float32).requires_grad_()
    sequences = random_ids(*LENGTHS)
    with use_backend(backend):
        losses, grads = learn(ours, sequences)
    eager_losses, eager = learn_with_transformers(theirs, sequences)
    with InFloat64():
        exact_losses, exact = learn_with_transformers(theirs.double(), sequences)
    assert_as_good_as_torch(losses, eager_losses, exact_losses)
    eager_grads, exact_grads = (
        in_our_layout(model, tmp_path / name, family) for name, model in (("eager", eager), ("exact", exact))
    )
    parameters = dict(ours.named_parameters())
    moved, eager_moved = step(parameters, grads), step(parameters, eager_grads)
    exact_moved = step({name: x.double() for name, x in parameters.items()}, exact_grads)
    assert grads.keys() == exact_grads.keys()
    for name, grad in grads.items():
        assert_as_good_as_torch(grad, eager_grads[name], exact_grads[name].double())
        assert not torch.equal(moved[name], parameters[name])
    # One weight may be rounded the other way from gradients that are as exact: those of a model are judged as one.
    all_moved = (torch.cat([x[name].flatten() for name in grads]) for x in (moved, eager_moved, exact_moved))
    assert_as_good_as_torch(*all_moved)


def test_a_matrix_of_words_that_is_the_head_too_gets_both_gradients_whole(tmp_path: Path) -> None:
    """The words' part is sparse on its way, which changes no bit of the sum."""
    theirs = tiny_model("gpt2", sizes=SIZES)
    path, sequences = save(theirs, tmp_path / "model", family="gpt2"), random_ids(*LENGTHS)
    found = []
    for is_head in (True, False):
        model = load_model(path, dtype=torch.float32).requires_grad_()
        model.embedding._is_head = is_head
        found.append(learn(model, sequences)[1]["embedding.weight"])
    assert found[0].layout == torch.strided
    assert torch.equal(*found)
