"""The real models that come as packages answer as `transformers` does, in fp32: see tests/fixtures/record_greedy.py."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from polyserve.model.forward_context import PackedContext
from polyserve.model.weights.load import load_model
from support.logits import head_logits

FIXTURES = Path(__file__).parents[1] / "fixtures"
TIE = 0.01  # of the reference's two best logits: another order of summation may decide it otherwise


def differing_steps(path: Path, name: str) -> list[str]:
    """Steps at which the most likely token after the reference's tokens so far is not the reference's next one."""
    answers = json.loads((FIXTURES / f"greedy_{name}.json").read_text())["answers"]
    sequences = [answer["prompt_ids"] + answer["token_ids"][:-1] for answer in answers]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ends = lengths.cumsum(0)
    model = load_model(path, dtype=torch.float32, max_model_len=128)
    with torch.inference_mode():
        hidden = model(
            torch.tensor(list(chain.from_iterable(sequences))),
            torch.cat([torch.arange(length) for length in lengths]),
            PackedContext(torch.cat([torch.zeros(1), ends]).int()),
        )
        asked = torch.cat([torch.arange(end - len(a["token_ids"]), end) for a, end in zip(answers, ends, strict=True)])
        best = iter(head_logits(model, hidden[asked]).argmax(-1).tolist())
    return [
        f"{answer['text']!r}, step {step}: wanted {wanted}, got {got}"
        for answer in answers
        for step, (wanted, margin) in enumerate(zip(answer["token_ids"], answer["margins"], strict=True))
        if (got := next(best)) != wanted and margin >= TIE
    ]


@pytest.mark.model_package
def test_smollm2_continues_8_prompts_as_transformers_does(smollm2_file: Path) -> None:
    assert differing_steps(smollm2_file, "smollm2") == []


@pytest.mark.model_package
def test_gemma3_continues_8_prompts_as_transformers_does(gemma3_file: Path) -> None:
    assert differing_steps(gemma3_file, "gemma3-270m") == []
