"""Finds calls in a message while it is written: text in, in whatever pieces, events out.

    text --begin, name, middle, "{"--> arguments --their "}"--> end --> between (a further call), last, or text

A call is certain when its name is one of the functions' and its arguments begin; from then on they are passed on as
they come. What began like a call but is none is given back as text, character for character, and so is what follows
one. White space between the parts of a call may be any. The events joined are the same however the text was cut.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polyserve.tools.formats import CallFormat

WHITE_SPACE = " \t\r\n"
SPACE = frozenset(WHITE_SPACE)
PUNCTUATION = frozenset("{}[],:;")


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one call. `id` and `name` come with its first one."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class MessageDelta:
    """What is new of a message."""

    text: str
    calls: list[CallDelta]


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Parts that follow each other, with any white space before each; a part is one of several strings, of which none
    begins another one."""

    parts: list[tuple[str, ...]]
    name_place: int | None = None  # the part that is a function's name; then the last one is its arguments' beginning


class _Attempt:
    """How far a text fits a pattern."""

    def __init__(self, pattern: _Pattern) -> None:
        self.pattern = pattern
        self.found: list[str] = []  # parts that are complete
        self._seen = ""  # of the next one

    def step(self, character: str) -> bool:
        """Take the next character. Returns whether it fits."""
        if character in SPACE and not self._seen:
            return True
        seen = self._seen + character
        fitting = [text for text in self.pattern.parts[len(self.found)] if text.startswith(seen)]
        self._seen = seen
        if fitting == [seen]:
            self.found.append(seen)
            self._seen = ""
        return bool(fitting)

    @property
    def complete(self) -> bool:
        return len(self.found) == len(self.pattern.parts)


class _Arguments:
    """Where a JSON object ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def step(self, character: str) -> bool:
        """Take the next character. Returns whether it was the object's last."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return self._depth == 0


class CallParser:
    """One message. `push` its text, then `flush`."""

    def __init__(self, form: CallFormat, names: Sequence[str], new_id: Callable[[], str]) -> None:
        """names: of the functions that can be called.  new_id: makes a call's id."""
        self._form = form
        self._names = {f'"{name}"' if form.quoted else name + form.middle: name for name in names}
        self._new_id = new_id
        self._begin = self._call_pattern(form.begin)
        self._opened = [self._call_pattern(form.opening + form.begin)] if form.opening else []
        self._end = _Pattern(_parts(form.end, form.marker))
        further = [self._call_pattern(form.between)]
        self._after_call = further + [_Pattern([(text,)]) for text in (form.last, form.closing) if text]
        self._options: deque[_Pattern] = deque()  # to try on the same text if the attempt fails
        self._attempt: _Attempt | None = None  # None: no call can begin, or arguments are read
        self._arguments: _Arguments | None = None
        self._held = ""  # what the attempt has taken
        self._closing = False  # a call has ended, and no text came after it
        self._num_calls = 0
        self._texts: list[str] = []
        self._calls: list[CallDelta] = []
        self._try(self._begin, *self._opened)

    @property
    def has_called(self) -> bool:
        return self._num_calls > 0

    def push(self, text: str) -> MessageDelta:
        """What `text` brings."""
        waiting = [text]
        while waiting:
            part = waiting.pop()
            for place, character in enumerate(part):
                again = self._step(character)
                if again:
                    waiting += (part[place + 1 :], again)
                    break
        return self._take()

    def flush(self, *, cut: bool) -> MessageDelta:
        """The end of the message. `cut`: it would have gone on, so that a call which had begun is no text."""
        attempt, held, self._held = self._attempt, self._held, ""
        if attempt is not None and held:
            begun = len(attempt.found) >= (1 if self._form.marker is not None else 2)
            ends = attempt.pattern.name_place is None or not held.strip() or cut
            if not (self._closing and ends) and not (cut and begun):
                self._texts.append(held)
        return self._take()

    def _step(self, character: str) -> str:
        """Take one character. Returns text, with this character at its end, that has to be read again."""
        if self._arguments is not None:
            self._add_arguments(character)
            if self._arguments.step(character):
                self._arguments, self._closing = None, True
                self._try(*([self._end] if self._end.parts else self._after_call))
        elif self._attempt is None:
            self._texts.append(character)
        else:
            self._held += character
            if not self._attempt.step(character):
                return self._fail()
            if self._attempt.complete:
                self._complete(self._attempt)
        return ""

    def _complete(self, attempt: _Attempt) -> None:
        self._held = ""
        place = attempt.pattern.name_place
        if place is not None:
            self._calls.append(CallDelta(self._num_calls, "{", self._new_id(), self._names[attempt.found[place]]))
            self._num_calls += 1
            self._arguments, self._attempt, self._closing = _Arguments(), None, False
            self._arguments.step("{")
        elif attempt.pattern is self._end:
            self._try(*self._after_call)
        else:
            self._look_for_calls()

    def _fail(self) -> str:
        """The text does not fit: let another pattern try it, or give its beginning out."""
        held, self._held = self._held, ""
        if self._options:
            self._attempt = _Attempt(self._options.popleft())
            return held
        if self._closing:
            self._closing = False
            self._look_for_calls()
            return held
        start = len(held) - len(held.lstrip(WHITE_SPACE)) + 1  # nothing can begin before the second visible character
        self._texts.append(held[:start])
        self._look_for_calls()
        return held[start:]

    def _look_for_calls(self) -> None:
        """In the middle of a message, calls begin with a marker."""
        if self._form.marker is not None and (self._form.text_around or not self._num_calls):
            self._try(self._begin)
        else:
            self._attempt = None

    def _try(self, *patterns: _Pattern) -> None:
        self._options = deque(patterns)
        self._attempt = _Attempt(self._options.popleft())

    def _call_pattern(self, text: str) -> _Pattern:
        before = _parts(text, self._form.marker)
        middle = _parts(self._form.middle, None) if self._form.quoted else []
        return _Pattern([*before, tuple(self._names), *middle, ("{",)], name_place=len(before))

    def _add_arguments(self, text: str) -> None:
        if self._calls and self._calls[-1].index == self._num_calls - 1:
            self._calls[-1] = replace(self._calls[-1], arguments=self._calls[-1].arguments + text)
        else:
            self._calls.append(CallDelta(self._num_calls - 1, text))

    def _take(self) -> MessageDelta:
        delta = MessageDelta("".join(self._texts), self._calls)
        self._texts, self._calls = [], []
        return delta


def _parts(text: str, marker: str | None) -> list[tuple[str, ...]]:
    """The parts of a format's text: the marker, punctuation marks, and what stands between them and white space."""
    parts: list[str] = []
    word = ""
    if marker is not None and marker in text:
        before, _, after = text.partition(marker)
        return [*_parts(before, None), (marker,), *_parts(after, None)]
    for character in text:
        if character not in SPACE and character not in PUNCTUATION:
            word += character
            continue
        parts += [word] if word else []
        parts += [character] if character in PUNCTUATION else []
        word = ""
    return [(part,) for part in [*parts, *([word] if word else [])]]
