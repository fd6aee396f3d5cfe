"""docs/api.md against the code."""

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest

from polyserve.api.http.schemas import ChatBody, CompletionBody
from polyserve.api.reference.__main__ import PATH, document


def test_it_says_what_the_code_does() -> None:
    assert PATH.read_text() == document(), "run make docs"


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (ChatBody, chat_params.CompletionCreateParamsStreaming),
        (CompletionBody, completion_params.CompletionCreateParamsStreaming),
    ],
)
def test_no_field_of_openais_is_unknown(body: type, params: type) -> None:
    assert params.__annotations__.keys() <= body.model_fields.keys()
