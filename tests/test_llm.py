"""LLM: text in, text out, with a tiny random model in this process."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from polyserve.config import EngineConfig
from polyserve.engine.runner import ModelRunner
from polyserve.errors import InternalError, InvalidRequest, ModelLoadError
from polyserve.llm import LLM
from polyserve.output import RequestOutput
from polyserve.sampling_params import SamplingParams
from support.checkpoints import make_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = ["Once upon a time", "北京是", "Die Hauptstadt von"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")
    return LLM(str(path), config=EngineConfig(dtype="float32", threads=1), max_logprobs=5)


def token_ids(outputs: list[RequestOutput]) -> list[list[int]]:
    return [answer.token_ids for output in outputs for answer in output.outputs]


def test_every_prompt_gets_its_answer_in_order(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [output.prompt_token_ids for output in outputs] == [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    for output in outputs:
        (answer,) = output.outputs
        assert (len(answer.token_ids), answer.finish_reason, output.finished) == (12, "length", True)
        assert answer.text == b"".join(map(llm.tokenizer.token_bytes, answer.token_ids)).decode(errors="replace")


def test_a_prompt_may_be_one_text_or_its_token_ids(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0])
    (by_text,) = llm.generate(PROMPTS[0], GREEDY)
    (by_ids,) = llm.generate(ids, GREEDY)
    (in_list,) = llm.generate([ids], GREEDY)
    assert by_ids.prompt is None
    assert token_ids([by_text]) == token_ids([by_ids]) == token_ids([in_list])


def test_no_prompts_give_no_answers(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_parameters_may_be_one_for_each_prompt(llm: LLM) -> None:
    params = [replace(GREEDY, max_tokens=count) for count in (1, 5, 3)]
    assert [len(ids) for ids in token_ids(llm.generate(PROMPTS, params))] == [1, 5, 3]
    with pytest.raises(ValueError, match="one for each of 3 prompts, got 2"):
        llm.generate(PROMPTS, params[:2])


def test_choices_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    first = token_ids(llm.generate(PROMPTS[0], params))
    assert len({tuple(ids) for ids in first}) == 3
    assert token_ids(llm.generate(PROMPTS[0], params)) == first
    assert token_ids(llm.generate(PROMPTS[0], replace(params, seed=None))) != first


def test_best_of_gives_the_answers_with_the_highest_mean_log_probability(llm: LLM) -> None:
    params = SamplingParams(n=6, seed=7, max_tokens=12, stop=["a"], logprobs=0)
    (drawn,) = llm.generate(PROMPTS[0], params)
    means = [answer.cumulative_logprob / len(answer.token_ids) for answer in drawn.outputs]
    best = sorted(range(6), key=lambda choice: -means[choice])[:2]
    (picked,) = llm.generate(PROMPTS[0], replace(params, n=2, best_of=6, logprobs=None))
    assert [answer.text for answer in picked.outputs] == [drawn.outputs[choice].text for choice in best]
    assert [answer.index for answer in picked.outputs] == [0, 1]
    assert picked.outputs[0].logprobs is None


def test_beam_search_tells_the_log_probability_of_its_answers(llm: LLM) -> None:
    params = SamplingParams(use_beam_search=True, n=3, max_tokens=8, length_penalty=0.0)
    (plain,), (scored,) = (llm.generate(PROMPTS[0], replace(params, logprobs=logprobs)) for logprobs in (None, 0))
    found = [answer.cumulative_logprob for answer in plain.outputs]
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx([answer.cumulative_logprob for answer in scored.outputs])


def test_a_stop_string_cuts_the_text_and_ends_the_choice(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], GREEDY)
    text = whole.outputs[0].text
    stop = text[4:7]
    (cut,) = llm.generate(PROMPTS[0], replace(GREEDY, stop=[stop], max_tokens=40))
    answer = cut.outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[: text.index(stop)], "stop", stop)
    assert not llm.engine.has_work()


def test_log_probabilities_come_with_every_token_and_sum_up(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], replace(GREEDY, logprobs=2))
    (answer,) = output.outputs
    assert answer.logprobs is not None
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    assert all(entry.top[0].token_id == entry.token_id and len(entry.top) == 2 for entry in answer.logprobs)
    assert answer.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in answer.logprobs))


def test_a_prompt_can_be_scored_without_an_answer(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert token_ids([output]) == [[]]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [entry.token_id for entry in output.prompt_logprobs[1:] if entry] == output.prompt_token_ids[1:]


@pytest.mark.parametrize(
    ("bad", "params", "message"),
    [
        ([], GREEDY, "prompt 1 of 3: the prompt must have at least one token"),
        ([10**6], GREEDY, "prompt 1 of 3: the prompt holds token id 1000000"),
        ([5] * 200, GREEDY, "this model takes 128: 73 too many"),
        ("x", replace(GREEDY, logprobs=6), "logprobs must be at most 5, got 6"),
        ("x", SamplingParams(max_tokens=0), "max_tokens must be at least 1 unless prompt_logprobs is set"),
        ("\ud800", GREEDY, "surrogate"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_is_computed(
    llm: LLM, bad: str | list[int], params: SamplingParams, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.generate([PROMPTS[0], bad, PROMPTS[1]], params)
    assert not llm.engine.has_work()


def test_a_conversation_goes_through_the_chat_template(llm: LLM) -> None:
    conversation: list[dict[str, object]] = [{"role": "user", "content": "Hello"}]
    (alone,) = llm.chat(conversation, GREEDY)
    in_list, longer = llm.chat([conversation, [*conversation, {"role": "assistant", "content": "Hi"}]], GREEDY)
    assert alone.prompt == llm.tokenizer.render_chat(conversation)
    assert token_ids([alone]) == token_ids([in_list]) != token_ids([longer])


def test_an_unfinished_answer_can_be_gone_on_with(llm: LLM) -> None:
    conversation: list[dict[str, object]] = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is"},
    ]
    (output,) = llm.chat(conversation, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert output.prompt is not None
    assert output.prompt.endswith("It is")


def test_an_interrupt_waits_for_the_step_and_leaves_the_engine_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = token_ids(llm.generate(PROMPTS, GREEDY))
    step, finished_steps = llm.engine.step, []

    def interrupted_step() -> object:
        os.kill(os.getpid(), signal.SIGINT)
        outputs = step()
        finished_steps.append(outputs)
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY)
    assert len(finished_steps) == 1
    assert not llm.engine.has_work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert token_ids(llm.generate(PROMPTS, GREEDY)) == before


def test_a_step_that_cannot_be_computed_is_an_error_and_leaves_the_engine_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "submit", fail)
        with pytest.raises(InternalError):
            llm.generate(PROMPTS, GREEDY)
    assert not llm.engine.has_work()
    assert len(llm.generate(PROMPTS, GREEDY)) == 3


def test_a_list_that_takes_long_shows_its_progress(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("polyserve.llm.PROGRESS_AFTER_S", 1e-9)
    llm.generate(PROMPTS, GREEDY)
    assert "3/3" in capsys.readouterr().err
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    llm.generate(PROMPTS[0], GREEDY)
    assert capsys.readouterr().err == ""


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such file or folder"):
        LLM(str(tmp_path / "missing"))
