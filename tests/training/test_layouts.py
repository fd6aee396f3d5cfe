"""However processes divide rows, weights and layers, they learn what one process learns, and read each other's runs."""

from pathlib import Path

import pytest

from polyserve_training.checkpoint import digest
from polyserve_training.checkpoint_files import Files
from polyserve_training.config import TokenizeOptions
from polyserve_training.data.tokenize import tokenize
from polyserve_training.run_log import read_log
from support.checkpoints import make_checkpoint
from support.together import Task, perform, work_together
from support.training_runs import write_recipe

pytestmark = pytest.mark.timeout(900)  # processes that share two cores with other tests take turns
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "alone": (1, []),
    "2 copies": (2, ["parallel.shard=false"]),
    "2 shards": (2, []),
    "2 halves": (2, ["parallel.tensor=2"]),
    "4 shards": (4, []),
    "2 shards of 2 halves": (4, ["parallel.tensor=2"]),
}
# what differs between families is how layers are divided
CASES = [("new", layout) for layout in LAYOUTS if layout != "alone"]
CASES += [(family, "2 halves") for family in ("polylm", "bloom", "llama", "gemma3")]
CASES += [("gemma3", "2 shards of 2 halves"), ("new bfloat16", "2 shards")]
AGAIN = ("2 shards", "2 halves", "2 shards of 2 halves")  # each reads what the one before wrote, and writes it
# Adam's first moment is the gradient; steps above the mean are skipped; small steps keep losses comparable
SETTINGS = [
    *("compute.dtype=float32", "batch.micro_rows=1", "stages.0.steps=3", "stages.1.steps=2"),
    *("optimizer={lr: 1.0e-4, beta1: 0, beta2: 0}", "spikes={window: 4, sigmas: 0}"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer_folder, data_folder, texts_folder) -> dict[tuple[str, str], Path]:
    """Folders of runs, by model and layout."""
    root = tmp_path_factory.mktemp("layouts")
    settings = {"new": SETTINGS, "new bfloat16": [*SETTINGS, "compute.dtype=bfloat16"]}
    folders: dict[tuple[str, str], Path] = {}
    together: dict[int, list[Task]] = {}
    for model, layout in [(model, "alone") for model in dict(CASES)] + CASES:
        if model not in settings:
            start = make_checkpoint(root / model / "start", model)
            tokenize([texts_folder], start, root / model / "data", TokenizeOptions())
            data = f"data.sources.texts={root / model / 'data'}"
            settings[model] = [*SETTINGS, f"model={{path: {start}}}", f"tokenizer={start}", data]
        num_processes, overrides = LAYOUTS[layout]
        folder = root / model / layout.replace(" ", "-")
        folder.mkdir(parents=True)
        folders[model, layout] = folder / "run"
        path = write_recipe(folder, tokenizer=tokenizer_folder, data=data_folder)
        together.setdefault(num_processes, []).append(Task(str(path), [*settings[model], *overrides]))
    source = folders["new", "alone"] / "checkpoints/step-00000005"
    for layout in AGAIN:
        num_processes, overrides = LAYOUTS[layout]
        folders["again", layout] = root / "again" / layout.replace(" ", "-")
        settings_again = [*SETTINGS, *overrides, f"run={folders['again', layout]}"]
        together[num_processes].append(Task(str(root / "new/alone/recipe.yaml"), settings_again, str(source)))
        source = folders["again", layout] / "checkpoints/step-00000001"
    for num_processes, tasks in together.items():
        work_together(num_processes, tasks)
    return folders


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_learns_what_one_process_learns(model, layout, runs):
    expected, found = read_log(runs[model, "alone"]), read_log(runs[model, layout])
    for what in ("rows", "tokens", "skipped", "learning_rate"):
        assert [line[what] for line in found] == [line[what] for line in expected]
    assert model != "new" or {line["skipped"] for line in expected} == {True, False}
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1e-5)
    norms = [line["gradient_norm"] for line in expected]
    assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_has_the_gradients_of_one_process(model, layout, runs):
    expected, found = (Files(runs[model, which] / "checkpoints/step-00000005") for which in ("alone", layout))
    assert found.blocks.keys() == expected.blocks.keys()
    gradients = [name for name in expected.blocks if name.startswith("exp_avg/")]
    for name in gradients:
        wanted = expected.whole(name)
        assert wanted.abs().max() > 0
        difference = found.whole(name) - wanted
        assert difference.norm() <= 5e-6 * wanted.norm()
        assert difference.abs().max() <= 2e-5 * wanted.abs().max()  # one of 36,864 may be rounded far from the others


def test_a_checkpoint_goes_from_layout_to_layout_unchanged(runs, tmp_path):
    whole = digest(runs["new", "alone"] / "checkpoints/step-00000005")
    for layout in AGAIN:
        checkpoint = runs["again", layout] / "checkpoints/step-00000001"
        assert len(list(checkpoint.glob("*.safetensors"))) == LAYOUTS[layout][0]
        assert digest(checkpoint) == whole
    recipe = runs["new", "alone"].parent / "recipe.yaml"
    perform(Task(str(recipe), [*SETTINGS, f"run={tmp_path / 'run'}"], str(checkpoint)))
    assert digest(tmp_path / "run/checkpoints/step-00000001") == whole
