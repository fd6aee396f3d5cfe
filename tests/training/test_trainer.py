"""A step's gradient is that of the mean over all its tokens, however they are divided, and loses nothing in bf16."""

import pytest
import torch

from polyserve_training.config import Recipe
from polyserve_training.data.packing import Packed, pack
from polyserve_training.model import make_trainable
from polyserve_training.recipe import read_recipe
from polyserve_training.trainer import Trainer, token_losses
from support.packed_lines import LINES
from support.tiny_decoder import tiny_config, tiny_decoder
from support.training_runs import write_recipe


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return read_recipe(write_recipe(tmp_path, tokenizer=tmp_path, data=tmp_path), ["z_loss=0", "dropout=0"])


def learned(recipe: Recipe, parts: list[Packed]) -> tuple[float, float, dict[str, torch.Tensor]]:
    model = tiny_decoder(torch.float32)
    make_trainable(model)
    trainer = Trainer(model, recipe)
    result = trainer.step(0, parts)
    return float(result.loss), float(result.gradient_norm), trainer.state()


def test_parts_of_different_sizes_weigh_what_they_hold(recipe):
    whole, *_ = runs = [learned(recipe, parts) for parts in ([pack(LINES)], LINES, [pack(LINES[:2]), pack(LINES[2:])])]
    for loss, norm, state in runs[1:]:
        assert loss == pytest.approx(whole[0], rel=1e-6)
        assert norm == pytest.approx(whole[1], rel=1e-5)
        for name in (name for name in state if name.startswith("exp_avg/")):
            torch.testing.assert_close(state[name], whole[2][name], rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_mean_over_what_is_learned_from(recipe):
    model = tiny_decoder(torch.float32)
    total = sum(float(token_losses(model, part).sum()) for part in LINES)
    assert learned(recipe, LINES)[0] == pytest.approx(total / 34, rel=1e-6)


def test_a_step_with_nothing_to_learn_changes_no_weight(recipe):
    model = tiny_decoder(torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.dim() == 1}
    _, norm, state = learned(recipe, [LINES[3]])
    assert norm == 0
    assert all(torch.equal(state[f"weights/{name}"], values) for name, values in before.items())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gradient_of_a_common_word_is_summed_in_fp32(threads):
    model = tiny_decoder(torch.bfloat16, config=tiny_config(max_len=4096))
    make_trainable(model)
    ids = torch.full((4000,), 7)
    torch.set_num_threads(threads)
    try:
        model.embedding(ids, torch.arange(4000)).sum().backward()
    finally:
        torch.set_num_threads(1)
    assert model.embedding.weight.grad.dtype == torch.float32
    assert (model.embedding.weight.grad[7] == 4000).all()
    assert int(model.embedding.weight.grad.count_nonzero()) == model.config.hidden_size
