"""A recipe that is wrong is one line with the key's full name; the shipped ones are right."""

from pathlib import Path

import pytest

from polyserve.errors import TrainingError
from polyserve_training.recipe import as_values, read_recipe
from support.training_runs import write_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training/recipes").glob("*.yaml"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tokenizer=Path("tok"), data=Path("data"))


@pytest.mark.parametrize("shipped", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(shipped):
    assert read_recipe(shipped).num_steps > 0


def test_words_of_the_command_line_set_keys_at_any_depth(path):
    recipe = read_recipe(path, ["optimizer.lr=6e-5", "stages.1.steps=7", "stages.0.mixture.0.share=0.1", "seed=3"])
    assert recipe.optimizer.lr == 6e-5
    assert recipe.stages[1].steps == 7
    assert recipe.stages[0].mixture[0].share == 0.1
    assert recipe.seed == 3
    assert read_recipe(path, ["optimizer.clip=null"]).optimizer.clip is None


def test_a_recipe_written_out_is_the_same_recipe(path, tmp_path):
    import json

    recipe = read_recipe(path)
    (tmp_path / "again.yaml").write_text(json.dumps(as_values(recipe)))
    assert read_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate; there is lr, beta1"),
        ("stages.0.mixture.1.temperature=1", "unknown key stages.0.mixture.1.temperature; there is streams, share"),
        ("optimiser.lr=1", "unknown key optimiser; there is run"),
        ("validation.sources=x", "validation.sources: Expected `object`, got `str`"),
        ("batch.rows=four", "batch.rows: Expected `int`, got `str`"),
        ("batch.micro_rows=3", "batch: micro_rows must divide the 4 rows of a step, got 3"),
        ("stages.0.mixture.1.alpha=2", None),
        ("stages.1.mixture.1.alpha=0.3", "alpha has no effect on sampling unimax"),
        ("stages.0.mixture=[{share: 0}]", "the mixture of stage base sums to nothing"),
        ("stages=[]", "stages must be one or more"),
        ("model.num_kv_heads=1", "num_kv_heads has no effect on polylm"),
        ("model.path=somewhere", "family has no effect beside path"),
        ("model={}", "family is missing; or give path"),
        ("compute.dtype=float16", "compute.dtype: Invalid enum value 'float16'"),
        ("optimizer.beta2=1", "beta2 must be from 0 to below 1"),
        ("schedule.kind=linear", "schedule.kind: Invalid enum value 'linear'"),
        ("stages.2.steps=1", "there is no 2 to set anything in"),
        ("seed", "must be KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_named(override, message, path):
    if message is None:
        read_recipe(path, [override])
        return
    with pytest.raises(TrainingError) as error:
        read_recipe(path, [override])
    assert message in error.value.message


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "must hold keys and values")])
def test_a_file_that_is_no_recipe_is_named(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_recipe(tmp_path / "x.yaml")
    with pytest.raises(TrainingError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
