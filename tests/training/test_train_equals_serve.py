"""What is trained is what is served: the trainer's log-probabilities are the server's, bit for bit.

A checkpoint of each family is trained a step, so that its weights are nobody's, and then asked for the same tokens by
the trainer, packed and ragged; by the engine as prompts, in chunks and out of the prefix cache; and by decoding.
"""

import numpy as np
import pytest
import torch

from polyserve.model.decoder import Decoder
from polyserve.model.forward_context import PackedContext
from polyserve.model.weights.load import load_model
from polyserve_kernels.dispatch import use_backend
from polyserve_training.config import OptimizerRecipe
from polyserve_training.data.packing import IGNORED, Packed
from polyserve_training.model import make_trainable
from polyserve_training.optimizer import AdamW
from polyserve_training.trainer import token_losses
from support.checkpoints import FAMILIES, Family, make_checkpoint
from support.engine_runs import make_engine, make_request, run
from support.logits import random_ids

LENGTHS = (37, 2, 70, 18)


def packed(sequences: list[list[int]]) -> Packed:
    bounds = np.cumsum([0, *map(len, sequences)])
    return Packed(
        np.concatenate(sequences),
        np.concatenate([np.arange(len(sequence)) for sequence in sequences]),
        bounds.astype(np.int32),
        np.concatenate([[*sequence[1:], IGNORED] for sequence in sequences]),
    )


def trained_logprobs(model: Decoder, sequences: list[list[int]]) -> list[list[float]]:
    """Of every token but the first of each sequence."""
    losses = token_losses(model, packed(sequences)).detach().split(list(map(len, sequences)))
    return [(-part[:-1]).tolist() for part in losses]


def served_logprobs(model: Decoder, sequences: list[list[int]], **config: object) -> list[list[float]]:
    requests = [
        make_request(str(number), sequence, max_tokens=0, prompt_logprobs=0)
        for number, sequence in enumerate(sequences)
    ]
    answers = run(make_engine(model, **config), requests)
    found = [answers[str(number), 0].prompt_logprobs for number in range(len(sequences))]
    return [[entry.logprob for entry in entries[1:]] for entries in found]


def trained_model(family: Family, dtype: torch.dtype, folder) -> Decoder:
    model = load_model(make_checkpoint(folder, family), dtype=dtype)
    make_trainable(model)
    optimizer = AdamW(model, OptimizerRecipe(lr=1e-2))
    token_losses(model, packed(random_ids(20, 9, seed=5))).mean().backward()
    optimizer.step(lr=1e-2, norm=optimizer.gradient_norm(), keep=torch.tensor(True))
    return model


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainers_log_probabilities_are_the_servers(family, dtype, backend, tmp_path):
    sequences = random_ids(*LENGTHS)
    with use_backend(backend):
        model = trained_model(family, dtype, tmp_path)
        trained = trained_logprobs(model, sequences)
        assert [trained_logprobs(model, [sequence])[0] for sequence in sequences] == trained
        model.requires_grad_(False).eval()
        assert served_logprobs(model, sequences) == trained
        assert served_logprobs(model, sequences, max_num_batched_tokens=23) == trained
        beginnings = [sequence[: 1 + len(sequence) // 2] for sequence in sequences]
        assert served_logprobs(model, beginnings + sequences, block_size=4)[len(sequences) :] == trained


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_is_drawn_with_the_log_probability_that_training_gives_it(dtype, backend, tmp_path):
    with use_backend(backend):
        model = trained_model("polylm", dtype, tmp_path)
        model.requires_grad_(False).eval()
        prompts = random_ids(5, 31, 1)
        requests = [
            make_request(str(number), prompt, max_tokens=20, logprobs=0, ignore_eos=True, seed=number)
            for number, prompt in enumerate(prompts)
        ]
        answers = run(make_engine(model), requests)
        make_trainable(model)
        for number, prompt in enumerate(prompts):
            answer = answers[str(number), 0]
            [trained] = trained_logprobs(model, [prompt + answer.token_ids])
            assert [entry.logprob for entry in answer.logprobs] == trained[len(prompt) - 1 :]


def test_a_model_that_was_trained_further_does_not_have_the_servers_bits(tmp_path):
    """The comparison can fail: a step of training between the two is seen, and so are logits in plain bf16."""
    sequences = random_ids(*LENGTHS)
    model = trained_model("polylm", torch.bfloat16, tmp_path)
    served = served_logprobs(model.requires_grad_(False), sequences)
    make_trainable(model)
    optimizer = AdamW(model, OptimizerRecipe(lr=1e-4))
    token_losses(model, packed(sequences)).mean().backward()
    assert trained_logprobs(model, sequences) == served
    optimizer.step(lr=1e-4, norm=optimizer.gradient_norm(), keep=torch.tensor(True))
    assert trained_logprobs(model, sequences) != served


def test_log_probabilities_of_plain_torch_do_not_have_the_servers_bits(tmp_path):
    [sequence] = sequences = random_ids(37)
    model = trained_model("polylm", torch.bfloat16, tmp_path).requires_grad_(False)
    bounds = torch.tensor([0, 37], dtype=torch.int32)
    hidden = model(torch.tensor(sequence), torch.arange(37), PackedContext(bounds))
    plain = (hidden @ model.head_weight.t()).log_softmax(-1)[:-1]
    logprobs = plain[torch.arange(36), torch.tensor(sequence[1:])].tolist()
    assert served_logprobs(model, sequences)[0] != logprobs
    assert served_logprobs(model, sequences)[0] == pytest.approx(logprobs, abs=0.1)
