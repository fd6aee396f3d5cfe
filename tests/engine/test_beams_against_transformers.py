"""Beam ids equal those of `transformers` in float32, ties aside.

A difference counts as a tie if the scores of the two answers are less than 0.01 apart: two programs that sum in other
orders may then choose differently, and both be right. The whole comparison, with SmolLM2, is `make beams`.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fixtures.record_greedy import read_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from polyserve.config import EngineConfig
from polyserve.llm import LLM
from polyserve.sampling_params import SamplingParams
from support.checkpoints import make_checkpoint
from support.texts import LANGUAGES

STOPPINGS = (True, False, "never")
PENALTIES = (1.0, 0.0)
TIE = 0.01


def compare(llm: LLM, model: PreTrainedModel, prompts: Sequence[list[int]], params: SamplingParams) -> tuple[int, int]:
    """How many answers are the same, and how many differ by a tie. Fails at one that differs otherwise."""
    num_same = num_tied = 0
    stop_ids = [*llm.engine.eos_ids, *params.stop_token_ids]
    for output in llm.generate(list(prompts), params, use_tqdm=False):
        ids = output.prompt_token_ids
        beam_options = {"early_stopping": params.early_stopping, "length_penalty": params.length_penalty}
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            num_beams=params.num_beams,
            num_return_sequences=params.n,
            max_new_tokens=params.max_tokens,
            do_sample=False,
            **({} if params.num_beams == 1 else beam_options),
            eos_token_id=stop_ids,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for choice, answer in enumerate(output.outputs):
            theirs = found.sequences[choice, len(ids) :].tolist()
            end = next((i for i, token_id in enumerate(theirs, start=1) if token_id in stop_ids), len(theirs))
            if answer.token_ids == theirs[:end]:  # the rest is filled up
                num_same += 1
                continue
            assert params.num_beams > 1, (ids, answer.token_ids, theirs)
            score = answer.cumulative_logprob / len(answer.token_ids) ** params.length_penalty
            assert abs(score - found.sequences_scores[choice]) < TIE, (ids, params, answer.token_ids, theirs)
            num_tied += 1
    return num_same, num_tied


def searches(**settings: object) -> list[SamplingParams]:
    """1, 4 and 8 beams, three meanings of early stopping, two length penalties. Two answers where there can be."""
    return [
        SamplingParams(
            use_beam_search=True,
            n=min(2, beams),
            best_of=beams,
            early_stopping=stopping,
            length_penalty=penalty,
            **settings,
        )
        for beams in (1, 4, 8)
        for stopping in STOPPINGS
        for penalty in PENALTIES
    ]


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "llama")
    llm = LLM(config=EngineConfig(model=str(checkpoint), dtype="float32", threads=1))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompts = [llm.tokenizer.encode(LANGUAGES[language])[:12] for language in ("en", "zh", "ar")]
    found = [
        compare(llm, model, prompts, params)
        for params in searches(max_tokens=10, stop_token_ids=list(range(20, 500, 9)))
    ]
    assert sum(same for same, _ in found) >= 3 * (6 + 24) - 2


@pytest.mark.slow
@pytest.mark.model_package
@pytest.mark.timeout(0)
def test_ids_are_those_of_transformers_on_50_prompts_of_smollm2(smollm2_file: Path) -> None:
    llm = LLM(config=EngineConfig(model=str(smollm2_file), dtype="float32", quantization="none"))
    model = read_model(smollm2_file)
    texts = [text[: 20 + 8 * part] for text in LANGUAGES.values() for part in range(3)][:50]
    prompts = [llm.tokenizer.encode(text) for text in texts]
    stops = sorted({llm.tokenizer.encode(mark)[-1] for mark in (".", ",", "\n", "。")})
    total_same = total_tied = 0
    for params in searches(max_tokens=16, stop_token_ids=stops):
        same, tied = compare(llm, model, prompts, params)
        total_same, total_tied = total_same + same, total_tied + tied
        setting = f"early_stopping {params.early_stopping}, length_penalty {params.length_penalty}"
        print(f"{params.num_beams} beams, {setting}: {same} answers equal, {tied} ties", flush=True)
    assert total_tied < 0.02 * total_same
