"""What every tokenizer does, whatever file it came from: text to token ids, ids to exact bytes, messages to a prompt.

Text      str; a string that is a special token's own text becomes that token's id, as in Hugging Face tokenizers
Bytes     what one token adds to a text. A token may hold part of a character: text is decoded from joined bytes only
Lossless  decode(encode(text)) == text, unless the tokenizer itself normalises the text
Ids       0 to vocab_size - 1; a model's embedding may have more rows than that
All methods may be called from any thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from polyserve.errors import InvalidRequest
from polyserve.request import Vocabulary
from polyserve.tokenizer.chat import ChatTemplate

NO_CHAT_TEMPLATE = (
    "this model has no chat template; give one with --chat-template (in Python, chat_template): a jinja file, "
    "polylm-base, polylm-multialpaca or polylm-chat; or send a plain prompt instead of messages"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """Which ids of a vocabulary are more than text."""

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # every id that ends an answer; eos_id is one of them
    others: frozenset[int] = frozenset()  # further special ids: control tokens, roles of a chat and the like

    def all_ids(self) -> frozenset[int]:
        named = (self.bos_id, self.eos_id, self.pad_id, self.unk_id)
        return self.others | set(self.eos_ids) | {token_id for token_id in named if token_id is not None}


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What a client needs to use this tokenizer from afar; the fields are those of the `/tokenizer_info` endpoint."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool
    chat_template: str | None  # jinja source


class Tokenizer(ABC):
    """A subclass gives `_encode` and `_bytes_of`; both must work before it calls this constructor."""

    def __init__(
        self,
        *,
        vocab_size: int,
        special: SpecialIds,
        adds_bos: bool,
        removes_leading_space: bool,
        chat_template: str | None,
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = special.bos_id
        self.eos_id = special.eos_id
        self.pad_id = special.eos_id if special.pad_id is None else special.pad_id
        self.unk_id = special.unk_id
        self.eos_ids = special.eos_ids
        self.special_ids = special.all_ids()
        self.adds_bos = adds_bos
        self._removes_leading_space = removes_leading_space
        self._bytes: list[bytes | None] = [None] * vocab_size  # filled as tokens are met
        self.bos_token = self._text_or_none(self.bos_id)
        self.eos_token = self._text_or_none(self.eos_id)
        self.chat_template: ChatTemplate | None = None
        if chat_template is not None:
            self.chat_template = ChatTemplate(chat_template, bos_token=self.bos_token, eos_token=self.eos_token)

    @abstractmethod
    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of valid Unicode text, without holding the interpreter's lock for long."""

    @abstractmethod
    def _bytes_of(self, token_id: int) -> bytes:
        """What a token of this vocabulary adds to the text. Called once for each id."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special_tokens`, also the ones that the model wants around a text (BOS)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            wrong = f"U+{ord(text[error.start]):04X}"
            message = f"the text is not valid Unicode: character {error.start} is the lone surrogate {wrong}"
            raise InvalidRequest(message) from error
        return self._encode(text, add_special_tokens=add_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, exactly; a special token's own text. An unknown id is an InvalidRequest."""
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(f"there is no token {token_id}; this tokenizer's ids are 0 to {self.vocab_size - 1}")
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(token_id)
        return known

    def vocabulary(self) -> Vocabulary:
        """Every token's bytes. Takes a moment: there may be hundreds of thousands."""
        return Vocabulary([self.token_bytes(token_id) for token_id in range(self.vocab_size)], self.special_ids)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` for people to read: bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence of ids, without the space that some tokenizers put before every text."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(i) for i in token_ids if i not in skipped).decode(errors="replace")
        return text[1:] if self._removes_leading_space and text.startswith(" ") else text

    def render_chat(
        self,
        messages: list[dict[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, object]] | None = None,
    ) -> str:
        """The prompt of a conversation. Encode it with `add_special_tokens=False`: a template writes BOS itself."""
        if self.chat_template is None:
            raise InvalidRequest(NO_CHAT_TEMPLATE, param="messages")
        return self.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )

    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            tokenizer_class=type(self).__name__,
            vocab_size=self.vocab_size,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            pad_token=self._text_or_none(self.pad_id),
            unk_token=self._text_or_none(self.unk_id),
            add_bos_token=self.adds_bos,
            chat_template=self.chat_template.source if self.chat_template is not None else None,
        )

    def _text_or_none(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.token_text(token_id)
