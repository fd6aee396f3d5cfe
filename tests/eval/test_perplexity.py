"""Perplexity: by hand for a model made up here, and from the command line with a tiny one."""

import json
import math
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve.eval.perplexity import Windows, predict
from polyserve.output import LogprobEntry
from support.checkpoints import make_checkpoint

BOS = 99


def remembering(prompts: list[list[int]]) -> list[list[LogprobEntry | None]]:
    """A model that is the surer of a token, the more of them it sees before it; every token has two bytes."""
    return [
        [None, *(LogprobEntry("ab", prompt[i], b"ab", -1 / i, []) for i in range(1, len(prompt)))] for prompt in prompts
    ]


def test_a_text_of_one_window_is_scored_whole() -> None:
    found = predict(remembering, [1, 2, 3], Windows(window=8, stride=4), bos_id=BOS)
    assert (found.num_tokens, found.num_bytes) == (3, 6)
    assert found.nats == pytest.approx(1 + 1 / 2 + 1 / 3)
    assert found.perplexity == pytest.approx(math.exp(found.nats / 3))
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / 6)


def test_without_a_token_before_it_the_first_one_is_not_scored() -> None:
    found = predict(remembering, [1, 2, 3], Windows(window=8, stride=4), bos_id=None)
    assert (found.num_tokens, found.num_bytes, found.nats) == (2, 4, pytest.approx(1 + 1 / 2))


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("num_tokens", range(1, 20))
def test_every_token_is_scored_once_with_enough_before_it(bos_id: int | None, num_tokens: int) -> None:
    windows = Windows(window=6, stride=2)
    found = predict(remembering, list(range(num_tokens)), windows, bos_id=bos_id)
    unscored = bos_id is None
    assert found.num_tokens == num_tokens - unscored
    least = windows.window - windows.stride  # tokens before one that is not at the beginning
    assert found.nats <= sum(1 / min(i, least) for i in range(1, num_tokens + 1 - unscored)) + 1e-9


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (8, 0), (8, 8)])
def test_windows_that_cannot_be_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        Windows(window=window, stride=stride)


def test_the_command_reports_each_file_and_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_checkpoint(tmp_path / "tiny", "llama")
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    texts[0].write_text("Die Hauptstadt von Frankreich ist Paris. " * 3, encoding="utf-8")
    texts[1].write_text("北京是中国的首都，", encoding="utf-8")
    flags = ["--window", "32", "--stride", "16", "--threads", "1", "--max-bytes", "100"]
    assert main(["eval", "perplexity", str(model), *map(str, texts), *flags]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = document["files"]
    assert list(files) == [str(path) for path in texts]
    assert document["total"]["nats"] == pytest.approx(sum(figures["nats"] for figures in files.values()))
    assert all(figures["perplexity"] > 1 for figures in files.values())
    assert files[str(texts[0])]["num_bytes"] <= 101  # a tokenizer's own space may come before the text
