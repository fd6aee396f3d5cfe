"""What a client may send and how long it may take: every limit with its default, checked before anything is tokenised.

Over HTTP and gRPC alike. What a model bounds by itself (its length, its vocabulary) is checked in `polyserve.request`,
and what no request may exceed anywhere, in `SamplingParams`; these are narrower, and an operator's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from polyserve.config import option
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each must be positive. See the module."""

    max_connections: int = option(1024, "HTTP connections at a time; further ones are told so and closed")
    max_concurrent_streams: int = option(1024, "gRPC calls at a time on one connection")
    max_header_bytes: int = option(32 * 2**10, "bytes of a request's line and headers, or of a call's metadata")
    max_headers: int = option(100, "header fields of a request")
    max_body_bytes: int = option(8 * 2**20, "bytes of a request's body, or of a call's message")
    max_json_depth: int = option(64, "lists and objects inside each other in a body")
    header_timeout_s: float = option(10.0, "seconds that a request's headers may take to arrive")
    body_timeout_s: float = option(60.0, "seconds that its body may take")
    write_timeout_s: float = option(30.0, "seconds for which a client may leave what is sent to it unread")
    max_messages: int = option(1024, "messages of a conversation")
    max_sequences: int = option(1024, "choices of a request in all: its prompts times n")
    max_choices: int = option(128, "choices of one prompt")
    max_stop_strings: int = option(16, "stop strings")
    max_stop_string_bytes: int = option(256, "bytes of a stop string")
    max_stop_token_ids: int = option(128, "stop token ids")
    max_logit_bias: int = option(1024, "entries of logit_bias")
    max_grammar_bytes: int = option(2**18, "bytes of a JSON schema, expression or grammar, or of all choices together")
    max_prompt_bytes_per_token: int = option(
        256, "bytes of a prompt for each token of the model's length; a longer text is refused before it is tokenised"
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be more than 0, got {getattr(self, field.name)}")

    def check_params(self, params: SamplingParams) -> None:
        """Raise InvalidRequest if a list is longer than it may be."""
        counts = (
            ("n", params.n, self.max_choices, "choices"),
            ("stop", len(params.stop), self.max_stop_strings, "strings"),
            ("stop_token_ids", len(params.stop_token_ids), self.max_stop_token_ids, "ids"),
            ("logit_bias", len(params.logit_bias), self.max_logit_bias, "entries"),
        )
        for name, count, most, things in counts:
            if count > most:
                raise InvalidRequest(f"{name} takes at most {most} {things} here, got {count}", param=name)
        longest = max((len(stop.encode()) for stop in params.stop), default=0)
        if longest > self.max_stop_string_bytes:
            message = f"stop takes strings of at most {self.max_stop_string_bytes} bytes here, got one of {longest}"
            raise InvalidRequest(message, param="stop")

        if params.grammar_bytes > self.max_grammar_bytes:
            field = params.grammar_field
            message = f"{field} takes at most {self.max_grammar_bytes} bytes here, got {params.grammar_bytes}"
            raise InvalidRequest(message, param=field)

    def check_prompts(self, prompts: Sequence[object], params: SamplingParams) -> None:
        """Raise InvalidRequest if a request has no prompt, or more choices than it may have."""
        if not 0 < len(prompts) * params.n <= self.max_sequences:
            got = f"{len(prompts)} prompts with n = {params.n}"
            message = f"a request has 1 to {self.max_sequences} choices in all, got {got}"
            raise InvalidRequest(message, param="prompt")

    def check_messages(self, messages: Sequence[object]) -> None:
        """Raise InvalidRequest if a conversation is empty or too long."""
        if not 0 < len(messages) <= self.max_messages:
            message = f"messages must have 1 to {self.max_messages} messages, got {len(messages)}"
            raise InvalidRequest(message, param="messages")

    def check_length(self, num_bytes: int, *, max_model_len: int) -> None:
        """Raise InvalidRequest for a text whose tokens, however long, are more than the model takes."""
        if num_bytes > max_model_len * self.max_prompt_bytes_per_token:
            message = f"the prompt has {num_bytes} bytes, too many for the {max_model_len} tokens that this model takes"
            raise InvalidRequest(message, param="prompt", code="context_length_exceeded")
