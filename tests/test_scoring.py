"""Scores of texts are those that `transformers` gives in this process."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from polyserve.cli.main import polyserve
from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest
from polyserve.llm import LLM
from polyserve.sampling_params import SamplingParams
from support.checkpoints import make_checkpoint

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Berlin and the dog"),  # the space belongs to what follows
    ("北京是", "中国的首都"),
    ("", "Die Straßenbahn fährt heute über die größte Brücke."),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return LLM(config=EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_num_batched_tokens=7))


def test_scores_are_those_of_transformers(llm: LLM, checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).requires_grad_(False)
    for (context, continuation), score in zip(PAIRS, llm.score(PAIRS), strict=True):
        num_before = max(1, len(llm.tokenizer.encode(context.rstrip())))  # nothing predicts a first token
        ids = llm.tokenizer.encode(context + continuation)
        rows = model(torch.tensor([ids])).logits[0, num_before - 1 : -1].log_softmax(-1)
        after = torch.tensor(ids[num_before:])
        values = rows.gather(1, after[:, None])[:, 0]
        assert score.token_ids == after.tolist()
        assert score.logprobs == pytest.approx(values.tolist(), abs=1e-4)
        assert score.is_greedy == bool((rows.argmax(-1) == after).all())
        assert score.num_bytes == sum(len(llm.tokenizer.token_bytes(token_id)) for token_id in score.token_ids)
        assert score.perplexity == pytest.approx(math.exp(-float(values.mean())), rel=1e-3)
        assert score.bits_per_byte == pytest.approx(-float(values.sum()) / math.log(2) / score.num_bytes, rel=1e-3)


def test_what_greedy_decoding_gives_is_greedy(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=1)
    for context in ("The dog", "La casa", "Die", "The quick", "Paris"):
        (output,) = llm.generate(context, greedy)
        text = output.outputs[0].text
        if llm.tokenizer.encode(context + text) == output.prompt_token_ids + output.outputs[0].token_ids:
            assert llm.score([(context, text)])[0].is_greedy
            return
    raise AssertionError("no context has a continuation that is one token of its own")


def test_scores_from_the_prefix_cache_have_the_same_bits(llm: LLM) -> None:
    assert llm.score(PAIRS) == llm.score(PAIRS)


def test_an_empty_continuation_is_refused_by_its_place(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="prompt 1 of 2: the continuation has no token"):
        llm.score(["a text", ("a context", "")])


def test_the_command_gives_a_line_for_each_text(checkpoint: Path, tmp_path: Path, llm: LLM) -> None:
    rows = [{"context": PAIRS[0][0], "continuation": PAIRS[0][1]}, {"text": PAIRS[3][1]}]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", str(file), "--model", str(checkpoint), "--dtype", "float32", "--threads", "1"]
    result = CliRunner().invoke(polyserve, command)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    expected = llm.score([PAIRS[0], PAIRS[3]])
    assert [line["logprob"] for line in lines] == [score.logprob for score in expected]
    assert lines[0]["continuation"] == PAIRS[0][1]
    assert lines[1]["bits_per_byte"] == expected[1].bits_per_byte


@pytest.mark.parametrize("line", ['{"context": "a"}', '{"text": 5}', "[]", "{", '{"text": "a", "more": 1}'])
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    result = CliRunner().invoke(polyserve, ["score", str(file)])
    assert result.exit_code == 2
    assert "line 2" in result.output
