"""`polyserve bench steps`: which cells there are, what a step must cost, and a whole run with a tiny model."""

import json
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve.config import EngineConfig
from polyserve.model.families import read_config
from polyserve_benchmarks.compare.cost import attention_flops, kv_bytes_read, served_bytes, step_bytes
from polyserve_benchmarks.compare.plan import Run
from polyserve_benchmarks.steps import Steps, planned
from support.checkpoints import make_checkpoint


def test_cells_that_do_not_fit_the_model_or_take_too_long_a_prompt_are_left_out() -> None:
    steps = Steps(num_streams=[1, 4], contexts=[64, 128, 512], num_steps=8, max_prompt_tokens=256)
    assert list(planned(steps, 200, 512)) == [Run(1, 64, 8), Run(4, 64, 9), Run(1, 128, 8)]


def test_one_stream_is_measured_however_long_its_prompt() -> None:
    steps = Steps(num_streams=[1, 2], contexts=[512], max_prompt_tokens=256)
    assert list(planned(steps, 4096, 512)) == [Run(1, 512, 16)]


def test_the_first_stream_generates_until_the_last_one_has_begun() -> None:
    [cell] = planned(Steps(num_streams=[64], contexts=[128], num_steps=16), 4096, 512)
    assert cell.num_tokens == 18 + 16  # 63 prompts of 128 tokens, 448 of them beside 64 tokens that are generated


def test_a_layer_with_a_window_reads_no_more_than_that(tmp_path: Path) -> None:
    config = read_config(make_checkpoint(tmp_path / "tiny", "gemma3"))
    windows = [config.window(layer) for layer in range(config.num_layers)]
    assert None in windows
    assert any(windows)
    seen = sum(10**6 if window is None else window for window in windows)
    assert kv_bytes_read(config, 10**6) == seen * 2 * config.num_kv_heads * config.head_size * 2
    assert attention_flops(config, 10**6) == seen * 4 * config.num_heads * config.head_size


def test_a_small_cache_is_read_in_its_own_bytes_with_a_scale_a_head(tmp_path: Path) -> None:
    config = read_config(make_checkpoint(tmp_path / "tiny", "llama"))
    heads = config.num_layers * 2 * config.num_kv_heads
    assert kv_bytes_read(config, 10, "int8") == 10 * heads * (config.head_size + 4)
    assert kv_bytes_read(config, 10, "float32") == 10 * heads * config.head_size * 4


def test_weights_are_counted_as_they_are_served(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "tiny", "llama")
    assert main(["quantize", str(plain), str(tmp_path / "small"), "--scheme", "int8"]) == 0
    stored = step_bytes(tmp_path / "small", "stored")
    assert served_bytes(tmp_path / "small", EngineConfig()) == stored
    in_bf16 = served_bytes(plain, EngineConfig())
    assert served_bytes(plain, EngineConfig(dtype="float32")) > in_bf16 > stored
    assert served_bytes(plain, EngineConfig(quantization="int8")) == step_bytes(plain, "int8")


def test_the_command_prints_each_cell_and_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(make_checkpoint(tmp_path / "tiny", "llama"))
    flags = ["--num-streams", "1", "--contexts", "8,16", "--num-steps", "3", "--threads", "1"]
    assert main(["bench", "steps", model, *flags]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(cell["num_streams"], cell["context"]): cell for cell in document["results"]}
    assert list(cells) == [(1, 8), (1, 16)]
    assert all(cell["predicted_ms"] == max(cell["bytes_ms"], cell["operations_ms"]) for cell in cells.values())
    assert cells[1, 16]["bytes_ms"] > cells[1, 8]["bytes_ms"]


@pytest.mark.parametrize("field", ["num_steps", "max_prompt_tokens"])
def test_a_count_below_one_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Steps(**{field: 0})
