"""What is left out of a row depends on seed, step and row alone, and on nothing that computes it."""

from collections.abc import Iterator

import pytest
import torch

from polyserve.errors import TrainingError
from polyserve_kernels import dispatch
from polyserve_training.data.packing import Packed, pack
from polyserve_training.dropout import Dropout
from polyserve_training.model import make_trainable, recompute_layers
from polyserve_training.recipe import read_recipe
from polyserve_training.trainer import Trainer, token_losses
from support.packed_lines import LINES
from support.tiny_decoder import tiny_decoder
from support.training_runs import write_recipe


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    with dispatch.use_backend("cpu"):
        yield


def losses(parts: list[Packed], *, rate: float = 0.3, seed: int = 0, step: int = 0, first: int = 0) -> torch.Tensor:
    """Of all tokens, with rows numbered from `first` on."""
    model = tiny_decoder(torch.float32)
    make_trainable(model)
    dropout, found = Dropout(model, rate, seed=seed), []
    for part in parts:
        rows = [(length, first + number) for number, length in enumerate(part.rows)]
        first += len(rows)
        with dropout.learning(step, rows):
            found.append(token_losses(model, part).detach())
    return torch.cat(found)


def test_a_row_does_not_depend_on_its_company():
    assert torch.equal(losses([pack(LINES)]), losses(LINES))
    assert torch.equal(losses([pack(LINES)]), losses([pack(LINES[:3]), LINES[3]]))


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"first": 1}, {"rate": 0.0}])
def test_seed_step_and_row_decide(other):
    assert not torch.equal(losses(LINES[:1]), losses(LINES[:1], **other))


def test_nothing_is_left_out_elsewhere():
    model = tiny_decoder(torch.float32)
    make_trainable(model)
    Dropout(model, 0.5, seed=0)
    assert torch.equal(token_losses(model, LINES[0]), token_losses(tiny_decoder(torch.float32), LINES[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_much_is_left_out_as_was_asked_for_and_the_rest_makes_up_for_it(dtype):
    model = tiny_decoder(dtype)
    dropout = Dropout(model, 0.25, seed=0)
    words, places = torch.arange(300), torch.arange(300) % 64
    plain = model.embedding(words, places)
    with dropout.learning(0, [(100, 0), (200, 1)]):
        thinned = model.embedding(words, places)
    left_out = thinned == 0
    assert left_out.float().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(thinned[~left_out], plain[~left_out] / 0.75)
    assert not torch.equal(left_out[:100], left_out[100:200])


def test_layers_that_are_computed_again_leave_out_the_same(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, tokenizer=tmp_path, data=tmp_path), ["dropout=0.2"])
    states = []
    for recompute in (False, True):
        model = tiny_decoder(torch.float32)
        make_trainable(model)
        if recompute:
            recompute_layers(model)
        trainer = Trainer(model, recipe)
        trainer.step(0, LINES)
        states.append(trainer.state())
    for name in (name for name in states[0] if name.startswith("exp_avg/")):
        assert torch.equal(states[0][name], states[1][name]), name


def test_a_rate_of_one_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="dropout must be from 0 to below 1, got 1"):
        read_recipe(write_recipe(tmp_path, tokenizer=tmp_path, data=tmp_path), ["dropout=1.0"])
