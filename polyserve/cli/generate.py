"""`polyserve generate`: answer prompts from the command line, or a file of requests into a file of answers.

--prompt TEXT            once or several times, `-` for standard input; the answers are printed as text
--input FILE.jsonl       one request a line (see `polyserve.cli.rows`); one answer a line, in the same order
--output FILE.jsonl      where answers go, as JSON lines; it appears when all of them are there
Everything is read and checked before anything is computed.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from polyserve.cli.options import Flags, SectionedCommand, flag_name, flags_of
from polyserve.config import EngineConfig, ServerConfig
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams

if TYPE_CHECKING:
    from polyserve.cli.rows import Row
    from polyserve.llm import LLM
    from polyserve.output import RequestOutput


@click.command(cls=SectionedCommand)
@click.option("-p", "--prompt", "prompts", multiple=True, help="a text to go on with; repeatable; - is standard input")
@click.option("-i", "--input", "source", help="a JSONL file of requests; - is standard input")
@click.option("-o", "--output", "target", help="a JSONL file for the answers; default: standard output")
@flags_of(SamplingParams, "sampling", section="Sampling")
@flags_of(ServerConfig, "server", only=("chat_template",), section="Engine")
@flags_of(EngineConfig, "engine", argument="model", section="Engine")
def generate(
    *,
    prompts: tuple[str, ...],
    source: str | None,
    target: str | None,
    sampling: Flags[SamplingParams],
    server: Flags[ServerConfig],
    engine: Flags[EngineConfig],
) -> None:
    """Answer prompts, or a file of requests."""
    if bool(prompts) == (source is not None):
        raise click.UsageError("either --prompt or --input must be given, and not both")
    as_text = bool(prompts) and target is None
    for name in ("logprobs", "prompt_logprobs"):
        if as_text and sampling.given.get(name) is not None:
            raise click.UsageError(f"{flag_name(name)} has no effect on printed text: give --output as well")
    params, config, template = sampling.build(), engine.build(), server.build().chat_template

    from polyserve.cli.rows import Row

    label = "prompt" if prompts else "line"
    if source is None:
        rows = [Row(prompt=_text(prompt), messages=None, params=params) for prompt in prompts]
    else:
        rows = _read(source, sampling.given)
    with _opened(target) as file:
        outputs = _answer(rows, config, template, label=label)
        if as_text:
            print(_as_text(outputs))
        else:
            _write(file, rows, outputs)


def _text(prompt: str) -> str:
    return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt


def _read(source: str, given: dict[str, object]) -> "list[Row]":
    from polyserve.cli.rows import read_rows

    if source == "-":
        return read_rows(_lines(sys.stdin.buffer), given)
    try:
        with open(source, "rb") as file:
            return read_rows(_lines(file), given)
    except OSError as error:
        raise click.UsageError(f"--input {source}: {error.strerror}") from error


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    return (line.removesuffix(b"\n") for line in file)


@contextlib.contextmanager
def _opened(target: str | None) -> Iterator[IO[str]]:
    """Where answers go: standard output, or a file that takes its name at the end, so that it is never half a file."""
    if target is None or target == "-":
        yield sys.stdout
        return
    unfinished = Path(f"{target}.part")
    try:
        file = unfinished.open("w", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--output {target}: {error.strerror}") from error
    try:
        with file:
            yield file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _answer(rows: "list[Row]", config: EngineConfig, template: str | None, *, label: str) -> "list[RequestOutput]":
    """Load the model and answer every row in one batch. Raises InvalidRequest, before it computes, naming a bad row."""
    from polyserve.llm import LLM
    from polyserve.log import set_up_logging
    from polyserve.request import check_request

    set_up_logging("warning")
    llm = LLM(config=config, chat_template=template)
    prompts = []
    for number, row in enumerate(rows, start=1):
        try:
            prompts.append(_prompt_ids(llm, row))
            check_request(
                prompts[-1],
                row.params,
                vocab_size=llm.engine.vocab_size,
                max_model_len=llm.engine.max_model_len,
                max_logprobs=llm.max_logprobs,
            )
        except InvalidRequest as error:
            raise InvalidRequest(f"{label} {number}: {error.message}", param=error.param, code=error.code) from error
    return llm.generate(prompts, [row.params for row in rows])


def _prompt_ids(llm: "LLM", row: "Row") -> list[int]:
    if row.messages is not None:
        return llm.tokenizer.encode(llm.tokenizer.render_chat(row.messages), add_special_tokens=False)
    assert row.prompt is not None
    return llm.tokenizer.encode(row.prompt) if isinstance(row.prompt, str) else row.prompt


def _as_text(outputs: "list[RequestOutput]") -> str:
    """The answers alone; each under a line that says whose it is, if there are several."""
    answers = [
        (f"--- prompt {number}" + (f", choice {choice.index}" if len(output.outputs) > 1 else ""), choice.text)
        for number, output in enumerate(outputs, start=1)
        for choice in output.outputs
    ]
    return answers[0][1] if len(answers) == 1 else "\n".join(f"{heading}\n{text}" for heading, text in answers)


def _write(file: IO[str], rows: "list[Row]", outputs: "list[RequestOutput]") -> None:
    from polyserve.cli.rows import answer_line

    for row, output in zip(rows, outputs, strict=True):
        file.write(answer_line(row, output) + "\n")
