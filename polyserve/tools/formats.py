"""How families of models write calls, as constants; `grammar` and `parser` are made from them.

A message with calls    begin NAME middle ARGUMENTS end, for each further call between NAME middle ARGUMENTS end, last
NAME is the function's name, in quotes but for mistral-args; ARGUMENTS, a JSON object.

hermes        <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>   Hermes, Qwen 2.5 and 3; with text around
llama3        {"name": "f", "parameters": {}}; {...}                      Llama 3.1 and later: the whole message
mistral       [TOOL_CALLS][{"name": "f", "arguments": {}}, {...}]         Mistral up to 2024
mistral-args  [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}                  Mistral from 2025
gemma         {"name": "f", "parameters": {}}                             Gemma 3, asked for JSON: the whole message
Source  hermes: https://github.com/NousResearch/Hermes-Function-Calling   gemma: https://ai.google.dev/gemma/docs
        llama3: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
        mistral: https://docs.mistral.ai/capabilities/function_calling
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """See the module. Without a marker, calls stand at the beginning of the message or nowhere."""

    begin: str
    middle: str
    end: str
    between: str
    last: str = ""
    opening: str = ""  # what some models put before `begin` all the same
    closing: str = ""  # and after all calls
    marker: str | None = None  # what `begin` begins with: often a special token
    quoted: bool = True  # the name is a JSON string
    text_around: bool = False  # after a call, text and further calls may follow
    id_length: int = 24


FORMATS = {
    "hermes": CallFormat(
        marker="<tool_call>",
        begin='<tool_call>\n{"name": ',
        middle=', "arguments": ',
        end="}\n</tool_call>",
        between='\n<tool_call>\n{"name": ',
        text_around=True,
    ),
    "llama3": CallFormat(
        begin='{"name": ', middle=', "parameters": ', end="}", between='; {"name": ', opening="<|python_tag|>"
    ),
    "mistral": CallFormat(
        marker="[TOOL_CALLS]",
        begin='[TOOL_CALLS][{"name": ',
        middle=', "arguments": ',
        end="}",
        between=', {"name": ',
        last="]",
        id_length=9,  # its templates refuse others
    ),
    "mistral-args": CallFormat(
        marker="[TOOL_CALLS]",
        begin="[TOOL_CALLS]",
        middle="[ARGS]",
        end="",
        between="[TOOL_CALLS]",
        quoted=False,
        id_length=9,
    ),
    "gemma": CallFormat(
        begin='{"name": ', middle=', "parameters": ', end="}", between='; {"name": ', opening="```json", closing="```"
    ),
}
FORCED = FORMATS["llama3"]  # where a model has no format of its own: one that needs no special tokens

_SIGNS = {  # of a chat template: the first that is found decides
    "[ARGS]": "mistral-args",
    "[TOOL_CALLS]": "mistral",
    "<tool_call>": "hermes",
    "<|python_tag|>": "llama3",
    '"parameters": ': "llama3",
}


def choose_format(name: str, chat_template: str | None) -> CallFormat | None:
    """The format of that name (see `polyserve.config`); of "auto", the one that the template is certain to mean."""
    if name == "auto":
        signs = (found for sign, found in _SIGNS.items() if chat_template is not None and sign in chat_template)
        return FORMATS.get(next(signs, ""))
    return FORMATS.get(name)
