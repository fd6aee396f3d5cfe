"""Beam search on paper, over the whole vocabulary at once, as its definition says: what the engine's must answer."""

import math

from polyserve.request import Request
from support.paper_runner import EOS, VOCAB_SIZE, score_of


def beam_answers(request: Request, max_tokens: int) -> list[list[int]]:
    """The n best answers."""
    params, prompt = request.params, list(request.prompt_ids)
    width, penalty = params.num_beams, params.length_penalty
    limit = max_tokens if params.max_tokens is None else min(params.max_tokens, max_tokens)
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    while beams:
        everything = sorted(
            (
                (total + score_of(prompt + answer, token_id, params.seed or 0), [*answer, token_id])
                for total, answer in beams
                for token_id in range(VOCAB_SIZE)
            ),
            key=lambda pair: -pair[0],
        )
        length = len(beams[0][1]) + 1
        done += [
            (total / length**penalty, answer)
            for total, answer in everything[:width]
            if answer[-1] in stop_ids or length == limit
        ]
        done = sorted(done, key=lambda pair: -pair[0])[:width]
        beams = [pair for pair in everything if pair[1][-1] not in stop_ids and length < limit][:width]
        if len(done) == width and beams:
            far = limit if params.early_stopping == "never" and penalty > 0 else length
            hope = -math.inf if params.early_stopping is True or width == 1 else beams[0][0] / far**penalty
            if hope <= done[-1][0]:
                break
    return [answer for _, answer in done[: params.n]]
