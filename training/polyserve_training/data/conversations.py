"""Conversations out of JSON lines, in the shapes that are around.

messages       {"messages": [{"role": "user", "content": ...}, ...]}                         OpenAI, Hugging Face
ShareGPT       {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}
Alpaca         {"instruction": ..., "input": ... or null, "output": ...}                     MultiAlpaca too
Language       as for documents: the field `language` or `lang`, else the file's name (`ar.jsonl`), else `und`
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyserve.errors import TrainingError
from polyserve_training.data.documents import JSONL, find_files, language_of, read_objects

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NO_INPUT = ("", "<noinput>")
UNDETERMINED = "und"


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[dict[str, object]]  # role and content of each, as the chat templates take them
    language: str
    where: str  # file and line, for errors


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Those of a file, or of the files in a folder. Raises TrainingError, which names the line."""
    for file in find_files([path]):
        if JSONL not in file.suffixes:
            raise TrainingError(f"{file}: conversations must be JSON lines, in a file that ends in .jsonl")
        for number, fields in read_objects(file):
            where = f"{file}: line {number}"
            messages = _messages(fields, where)
            if not any(message["role"] == "assistant" for message in messages):
                raise TrainingError(f"{where}: has no answer to learn from")
            yield Conversation(messages, language_of(fields, file, where, default=UNDETERMINED), where)


def _messages(fields: Mapping[str, Any], where: str) -> list[dict[str, object]]:
    if "messages" in fields:
        return _turns(fields["messages"], "role", "content", where)
    if "conversations" in fields:
        return _turns(fields["conversations"], "from", "value", where)
    if "instruction" in fields and "output" in fields:
        parts = [fields["instruction"], fields.get("input") or "", fields["output"]]
        if not all(isinstance(part, str) for part in parts):
            raise TrainingError(f"{where}: instruction, input and output must be strings")
        instruction, given, output = parts
        question = instruction if given in NO_INPUT else f"{instruction}\n{given}"
        return [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    raise TrainingError(f"{where}: must have messages, conversations, or instruction and output")


def _turns(turns: object, role_key: str, content_key: str, where: str) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        role, content = (turn.get(role_key), turn.get(content_key)) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            wanted = f"{role_key} ({', '.join(ROLES)}) and {content_key}, a string"
            raise TrainingError(f"{where}: each turn must have {wanted}, got {turn!r}")
        messages.append({"role": ROLES[role], "content": content})
    return messages
