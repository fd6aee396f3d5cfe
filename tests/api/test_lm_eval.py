"""lm-evaluation-harness against a served model: a task file, and the server's own tokenizer from afar."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.record_greedy import read_model
from transformers import AutoModelForCausalLM

from polyserve.tokenizer.load import load_tokenizer
from support import lm_eval_run
from support.checkpoints import make_checkpoint
from support.served_model import served

TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [
    ("The capital of France is", [" Paris", " Berlin and the dog"]),
    ("北京是", ["中国的首都", " la casa"]),
    (
        "",
        ["The dog sleeps", "Die Hauptstadt"],
    ),  # without a context the begin-of-sequence token stands before the choice
]

Answers = list[list[tuple[float, bool]]]  # of each choice of each question: log-likelihood, and whether it is greedy
# the first choice is the right one
FACTS = [
    ("The capital of France is", [" Paris", " London", " a banana"]),
    ("Two plus two is", [" four", " blue", " yesterday"]),
    ("The sun rises in the", [" east", " refrigerator", " pocket"]),
    ("Water freezes at zero degrees", [" Celsius", " Monday", " piano"]),
    ("Cats and dogs are", [" animals", " numbers", " rivers"]),
    ("La capitale de la France est", [" Paris", " Tokyo", " le fromage"]),
    ("The opposite of hot is", [" cold", " seven", " Germany"]),
    ("He opened the door with a", [" key", " cloud", " verb"]),
]


class InProcess:
    """The same log-likelihoods from `transformers`."""

    def __init__(self, checkpoint: Path) -> None:
        if checkpoint.is_file():
            self.model = read_model(checkpoint)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self.model.requires_grad_(False)
        self.tokenizer = load_tokenizer(checkpoint)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def likeliest_continuation(self) -> tuple[str, str]:
        """A context, and the text of the token that most likely follows it, where joining them joins no tokens."""
        for context in ("The dog", "La casa", "Die", "The quick", "Paris"):
            ids = self.encode(context)
            token_id = int(self.model(torch.tensor([ids])).logits[0, -1].argmax())
            text = self.tokenizer.token_text(token_id)
            if self.encode(context + text) == [*ids, token_id]:
                return context, text
        raise AssertionError("no context has a continuation that is one token of its own")

    def score(self, context: str, choice: str) -> tuple[float, bool]:
        """Log-likelihood of the choice after the context, and whether it is what greedy decoding gives."""
        before = self.encode(context)
        after = self.encode(context + choice)[len(before) :]  # its rule: a token across the border is cut off
        if not context:
            before = [self.tokenizer.bos_id]
        rows = self.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        continuation = torch.tensor(after)
        values = rows.gather(1, continuation[:, None])
        return float(values.sum()), bool((rows.argmax(-1) == continuation).all())


def run_lm_eval(url: str, folder: Path, questions: list[tuple[str, list[str]]]) -> tuple[float, Answers]:
    """The accuracy it finds, and what it finds for every choice of every question."""
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({"context": c, "choices": choices}) + "\n" for c, choices in questions))
    (folder / "tiny.yaml").write_text(TASK.format(documents=documents))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    command = [sys.executable, lm_eval_run.__file__, f"{url}/v1/completions", str(folder)]
    result = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / "samples.json").read_text())
    return found["accuracy"], found["answers"]


def check(checkpoint: Path, folder: Path, questions: list[tuple[str, list[str]]], *flags: str) -> tuple[float, Answers]:
    """That every answer and the accuracy are those of `transformers`; returns the accuracy and the answers."""
    reference = InProcess(checkpoint)
    with served(checkpoint, "--dtype", "float32", "--served-model-name", "tiny", *flags) as server:
        accuracy, found = run_lm_eval(server.url, folder, questions)
    num_right = 0
    for (context, choices), answers in zip(questions, found, strict=True):
        scores = [reference.score(context, choice) for choice in choices]
        num_right += scores[0] == max(scores)  # the first choice is the right one
        for (loglikelihood, greedy), (expected, expected_greedy) in zip(answers, scores, strict=True):
            assert loglikelihood == pytest.approx(expected, abs=1e-3)
            assert greedy is expected_greedy
    assert accuracy == num_right / len(questions)
    return accuracy, found


def test_its_loglikelihoods_and_its_accuracy_are_those_of_an_in_process_run(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "llama")
    likeliest = InProcess(checkpoint).likeliest_continuation()
    _, found = check(checkpoint, tmp_path, [*QUESTIONS, (likeliest[0], [likeliest[1], " qqq"])], "--threads", "1")
    assert found[-1][0][1], "the likeliest continuation is the greedy one"


@pytest.mark.model_package
def test_smollm2_knows_more_than_chance(smollm2_file: Path, tmp_path: Path) -> None:
    accuracy, _ = check(smollm2_file, tmp_path, FACTS, "--quantization", "none")
    assert accuracy >= 0.75
