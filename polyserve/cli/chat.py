"""`polyserve chat`: a conversation in the terminal, with a model loaded here or with a server at a URL.

Each turn sends the whole conversation. Ctrl-C stops an answer (what was said stays in the conversation) and, at the
prompt, leaves. Input that is not a terminal is read line by line, one turn a line, and only the answers are printed.
"""

import asyncio
import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig, ServerConfig
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams

if TYPE_CHECKING:
    from polyserve.cli.partners import Message, Partner

HELP = """/reset  forget the conversation (the system prompt stays)
/exit   leave (Ctrl-D does too)
/help   this list
Ctrl-C stops an answer."""


@click.command(cls=SectionedCommand)
@click.option("--url", help="talk to the OpenAI-compatible server at this URL instead of loading a model")
@click.option("--model-name", help="with --url: the model to ask for; default: the first one the server lists")
@click.option("--api-key", help="with --url: the server's key; default: the environment's OPENAI_API_KEY")
@click.option("--system", "--system-prompt", "system", help="what the model is told before the conversation")
@flags_of(
    SamplingParams,
    "sampling",
    skip=("n", "logprobs", "prompt_logprobs"),
    defaults={"max_tokens": None},
    section="Sampling",
)
@flags_of(ServerConfig, "server", only=("chat_template",), section="Engine")
@flags_of(EngineConfig, "engine", argument="model", section="Engine")
def chat(
    *,
    url: str | None,
    model_name: str | None,
    api_key: str | None,
    system: str | None,
    sampling: Flags[SamplingParams],
    server: Flags[ServerConfig],
    engine: Flags[EngineConfig],
) -> int:
    """Talk with a model, loaded here or behind a URL."""
    sampling.build()  # refuse what is out of range before anything is loaded
    with asyncio.Runner() as runner:
        if url is not None:
            engine.refuse("with --url")
            server.refuse("with --url")
            key = api_key or os.environ.get("OPENAI_API_KEY")
            partner = runner.run(_connect(url, key, model_name, sampling))
        else:
            for flag, value in (("--model-name", model_name), ("--api-key", api_key)):
                if value is not None:
                    raise click.UsageError(f"{flag} has no effect without --url")
            partner = runner.run(_load(engine.build(), server.build().chat_template, sampling.build()))
        try:
            return _converse(runner, partner, system)
        finally:
            runner.run(partner.close())


async def _connect(url: str, api_key: str | None, model: str | None, sampling: Flags[SamplingParams]) -> "Partner":
    from polyserve.cli.partners import RemotePartner

    return await RemotePartner.connect(url, api_key=api_key, model=model, sampling=sampling.given)


async def _load(config: EngineConfig, chat_template: str | None, params: SamplingParams) -> "Partner":
    from polyserve.cli.partners import LocalPartner
    from polyserve.log import set_up_logging
    from polyserve.service.async_llm import AsyncLLM

    set_up_logging("warning")
    if sys.stdin.isatty():
        print(f"loading {config.model} ...", file=sys.stderr)
    return LocalPartner(await AsyncLLM.start(config, chat_template=chat_template), params)


def _converse(runner: asyncio.Runner, partner: "Partner", system: str | None) -> int:
    """Read turns and print answers until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        print("/help lists the commands", file=sys.stderr)
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        match line:
            case "":
                continue
            case "/exit":
                return 0
            case "/reset":
                messages = list(beginning)
            case "/help":
                print(HELP, file=sys.stderr)
            case _ if line.startswith("/"):
                print(f"no such command: {line.split()[0]} (/help lists them)", file=sys.stderr)
            case _:
                messages = _take_turn(runner, partner, messages, line)


def _take_turn(runner: asyncio.Runner, partner: "Partner", messages: "list[Message]", line: str) -> "list[Message]":
    """Print the answer to one more message. Returns the conversation with both, or as it was if there is no answer."""
    asked: list[Message] = [*messages, {"role": "user", "content": line}]
    pieces: list[str] = []
    try:
        runner.run(_print_answer(partner, asked, pieces))
    except InvalidRequest as error:
        print(error.message, file=sys.stderr)
        return messages
    except KeyboardInterrupt:
        print()
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]


async def _print_answer(partner: "Partner", messages: "list[Message]", pieces: list[str]) -> None:
    """Print an answer as it comes, and keep its pieces for the caller, who may be interrupted."""
    async with aclosing(partner.answer(messages)) as answer:
        async for piece in answer:
            pieces.append(piece)
            print(piece, end="", flush=True)
    print()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401, importing it gives `input` editing and history
    except ImportError:
        return  # a Python built without it still reads lines
