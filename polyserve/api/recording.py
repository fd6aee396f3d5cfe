"""A chat's answer put together while it is sent, to be kept in the store once it is complete."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polyserve.api.conversation import Message, joined_calls
from polyserve.api.frontend import Admitted, Frontend, Usage
from polyserve.api.store import StoredChoice, StoredCompletion
from polyserve.service.async_llm import ChoiceDelta
from polyserve.tools.parser import CallDelta


@dataclass(slots=True)
class Recording:
    """Give it every delta, then `keep`. An answer that its client does not wait for is not kept."""

    messages: Sequence[Message]
    metadata: Mapping[str, str] | None = None
    service_tier: str | None = None
    _texts: dict[int, list[str]] = field(default_factory=dict)
    _calls: dict[int, list[CallDelta]] = field(default_factory=dict)
    _ends: dict[int, ChoiceDelta] = field(default_factory=dict)

    def add(self, choice: int, text: str) -> None:
        """What a choice says next."""
        self._texts.setdefault(choice, []).append(text)

    def delta(self, delta: ChoiceDelta) -> None:
        """What is new in a choice."""
        self.add(delta.choice, delta.text)
        self._calls.setdefault(delta.choice, []).extend(delta.calls)
        if delta.finish_reason is not None:
            self._ends[delta.choice] = delta

    async def keep(self, frontend: Frontend, request: Admitted, usage: Usage) -> None:
        """Put the complete answer into the store."""
        choices = []
        for choice, end in sorted(self._ends.items()):
            assert end.finish_reason is not None
            text, calls = "".join(self._texts[choice]), joined_calls(self._calls[choice])
            choices.append(StoredChoice(text, end.finish_reason, end.stop_reason, calls))
        completion = StoredCompletion(
            id=request.request_id,
            created=int(time.time()),
            model=frontend.model_name,
            system_fingerprint=frontend.llm.numerics_id,
            messages=list(self.messages),
            choices=choices,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            metadata=None if self.metadata is None else dict(self.metadata),
            service_tier=self.service_tier,
        )
        await frontend.completions.put(request.tenant, completion)
