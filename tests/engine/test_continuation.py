"""A request that goes on in another engine gets the rest of the answer that it would have had in the first one."""

import random

import torch

from polyserve.request import Request
from polyserve.service.journal import Journal
from support.engine_runs import Answer, Answers, make_engine, make_request, run
from support.tiny_decoder import VOCAB_SIZE, tiny_decoder

MODEL = tiny_decoder(torch.float32)


def requests() -> list[Request]:
    """Seeds, choices, penalties over prompt and answer, a least length, log-probabilities of prompt and answer."""
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0, "repetition_penalty": 1.3, "prompt_logprobs": 2},
        {"temperature": 1.0, "n": 3, "presence_penalty": 0.5, "prompt_logprobs": 0},
        {"temperature": 1.0, "min_tokens": 9, "ignore_eos": False, "allowed_token_ids": list(range(0, VOCAB_SIZE, 3))},
        {"temperature": 0.8, "n": 2, "top_p": 0.9, "max_tokens": 5},
    ]
    return [
        make_request(
            f"r{number}",
            [(7 * i + number) % VOCAB_SIZE for i in range(20 + 40 * (number % 4))],
            seed=number,
            **{"max_tokens": 20, "ignore_eos": True, "logprobs": 2} | kinds[number % 4],
        )
        for number in range(12)
    ]


def killed_answers(seed: int) -> Answers:
    """The same requests in engines that each live a few steps, and a journal between them."""
    draw, journal, answers = random.Random(seed), Journal(), Answers()
    for request in requests():
        journal.open(request)
    while len(journal):
        engine = make_engine(MODEL, max_num_seqs=9, max_num_batched_tokens=draw.choice([16, 100, 512]))
        for entry in journal:
            engine.add(entry.continuation())
        for _ in range(draw.randint(3, 12)):
            for output in engine.step():
                assert journal.record(output)
                answer = answers.setdefault((output.request_id, output.choice), Answer())
                answer.token_ids += output.token_ids
                answer.logprobs += output.logprobs or []
                assert answer.prompt_logprobs is None or output.prompt_logprobs is None, "told twice"
                answer.prompt_logprobs = answer.prompt_logprobs or output.prompt_logprobs
                answer.finish_reason = output.finish_reason
    return answers


def test_over_many_engines_every_choice_has_the_bits_of_one_that_was_not_disturbed() -> None:
    undisturbed = {key: answer.bits for key, answer in run(make_engine(MODEL), requests()).items()}
    for seed in range(3):
        assert {key: answer.bits for key, answer in killed_answers(seed).items()} == undisturbed
