"""What it takes to go on with every live request when the engine has died: the request, and what was answered so far.

A token is a pure function of weights, tokens before it, parameters, seed and position, so a request that is sent to
another engine with its answers so far goes on with the tokens it would have had.

The journal also knows whom to suspect. A request that was in the step in which the engine died gets a strike, and loses
its strikes with its next token: one that gets a token after that step cannot have been what stopped it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from polyserve.request import Request, SequenceOutput


@dataclass(slots=True)
class Entry:
    """One live request."""

    request: Request
    answered: dict[int, list[int]]  # of the choices that have not ended
    strikes: int = 0
    held: bool = False  # kept from the engine until others have shown that they do no harm

    def continuation(self) -> Request:
        """The request as it is sent to an engine that does not know it."""
        return replace(self.request, answered=self.answered)


class Journal:
    """Every live request, the oldest first."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, request_id: str) -> Entry | None:
        return self._entries.get(request_id)

    def open(self, request: Request) -> None:
        """A request begins, with nothing answered."""
        self._entries[request.request_id] = Entry(request, {choice: [] for choice in range(request.params.n)})

    def record(self, output: SequenceOutput) -> bool:
        """Note what an engine brought. False if it belongs to nothing that is live."""
        entry = self._entries.get(output.request_id)
        if entry is None or output.choice not in entry.answered:
            return False
        entry.strikes = 0
        if output.finish_reason is not None:
            self.close(output.request_id, output.choice)
        else:
            entry.answered[output.choice] += output.token_ids
        return True

    def close(self, request_id: str, choice: int | None = None) -> None:
        """One choice of a request has ended, or all have. Unknown ids have just ended."""
        entry = self._entries.get(request_id)
        if entry is None:
            return
        if choice is not None:
            entry.answered.pop(choice, None)
        if choice is None or not entry.answered:
            del self._entries[request_id]
