"""Who may come in, and who goes next.

    reserve: within bounds, or Overloaded -> enter: waits for its turn, and is sent to the engine
        -> took: its first token has come, it waits no more -> close: it has ended

Bounds   choices that wait for their first token, tokens of their prompts, and bytes that all live requests may need
         beside the KV cache. The engine gets no more choices than it computes and a few to go on with, so what waits
         waits here, where the order is still open.
Order    the lower `priority` first, then whoever has been served least, then who came first.
Fairness each tenant's counter grows with what it gets, prompt and answer, in tokens or in characters: languages differ
         threefold in tokens for the same text. One that comes back after a pause starts beside the least served.

Source   Sheng et al., Fairness in Serving Large Language Models, https://arxiv.org/abs/2401.00588 (counters, lift)
"""

import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import NoReturn

from polyserve.config import option
from polyserve.errors import InvalidRequest, Overloaded
from polyserve.sampling_params import SamplingParams

SHARES = ("tokens", "characters")
SPARE_SHARE = 0.25  # choices sent ahead of their time, as a part of those that the engine computes at once
MAX_RETRY_AFTER_S = 60
TOKEN_BYTES = 100  # an id in engine, journal and answer (41 bytes each, measured)
LOGPROB_BYTES = 350  # an alternative in engine and answer (83 and 246 bytes, measured)
VOCABULARY_ROWS = 4  # floats for each token of the vocabulary, while logits are edited or filtered


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """How much may wait, and how tenants share."""

    max_queued_requests: int = option(1024, "choices that may wait for their first token; more are refused (429)")
    max_queued_tokens: int = option(2**20, "tokens of the prompts that may wait")
    max_request_memory_bytes: int = option(
        4 * 2**30, "memory that live requests may need beside the KV cache: ids, log-probabilities, filters"
    )
    share_by: str = option(
        "tokens", "what the owners of API keys get equally much of while there is not enough for all", choices=SHARES
    )

    def __post_init__(self) -> None:
        if self.share_by not in SHARES:
            raise ValueError(f"share_by must be one of {', '.join(SHARES)}, got {self.share_by!r}")
        for name in ("max_queued_requests", "max_queued_tokens", "max_request_memory_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def workspace_bytes(prompt_len: int, params: SamplingParams, *, vocab_size: int, max_model_len: int) -> int:
    """Memory that a request can come to need beside the KV cache, here and in the engine."""
    room = max_model_len - prompt_len
    num_answer = params.n * (room if params.max_tokens is None else min(room, params.max_tokens))
    num_bytes = TOKEN_BYTES * (prompt_len + num_answer)
    if params.logprobs is not None:
        num_bytes += LOGPROB_BYTES * num_answer * (params.logprobs + 1)
    if params.prompt_logprobs is not None:
        num_bytes += LOGPROB_BYTES * prompt_len * (params.prompt_logprobs + 1)
    return num_bytes + VOCABULARY_ROWS * 4 * vocab_size * params.n


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place, from `reserve` to `close`."""

    number: int  # in the order of arrival
    tenant: "_Tenant"
    priority: int
    prompt_len: int
    prompt_cost: int  # in what tenants share
    num_choices: int
    num_bytes: int
    open_choices: set[int]
    send: Callable[[], None] | None = None
    queued: bool = True  # until its first token
    started: bool = False
    sent_at: float | None = None  # monotonic seconds
    closed: bool = False


@dataclass(slots=True)
class _Tenant:
    served: float = 0.0  # tokens or characters
    num_live: int = 0  # tickets
    waiting: list[tuple[int, int, Ticket]] = field(default_factory=list)  # a heap by priority and arrival

    def first(self) -> tuple[int, int, Ticket] | None:
        while self.waiting and self.waiting[0][2].closed:
            heapq.heappop(self.waiting)
        return self.waiting[0] if self.waiting else None


class Admission:
    """What one server has taken in. `num_refused` counts since the start."""

    def __init__(self, config: AdmissionConfig, *, max_num_seqs: int, vocab_size: int, max_model_len: int) -> None:
        self._config = config
        self._max_sent = max_num_seqs + math.ceil(SPARE_SHARE * max_num_seqs)
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._tenants: dict[str | None, _Tenant] = {}
        self._numbers = count()
        self._num_sent = 0  # choices that the engine has, or will have when it is there again
        self._departures: deque[tuple[float, int]] = deque(maxlen=64)  # when choices left the queue, and how many
        self.num_queued = self.num_queued_tokens = self.num_bytes = 0
        self.num_refused = 0

    @property
    def num_unsent(self) -> int:
        """Choices that wait here for their turn."""
        waiting = (ticket for tenant in self._tenants.values() for *_, ticket in tenant.waiting)
        return sum(ticket.num_choices for ticket in waiting if not ticket.closed)

    def check_room(self) -> None:
        """Raise Overloaded if nothing would be taken in now: before any work is done for a request."""
        config = self._config
        if self.num_queued >= config.max_queued_requests or self.num_queued_tokens >= config.max_queued_tokens:
            self._refuse()

    def reserve(self, prompt_len: int, params: SamplingParams, *, tenant: str | None, num_characters: int) -> Ticket:
        """A place for a request. Raises Overloaded, or InvalidRequest if it could never have one."""
        config, params = self._config, params.drawn
        num_bytes = workspace_bytes(prompt_len, params, vocab_size=self._vocab_size, max_model_len=self._max_model_len)
        needs = (
            ("choices", params.n, self.num_queued, config.max_queued_requests),
            ("tokens in its prompt", prompt_len, self.num_queued_tokens, config.max_queued_tokens),
            ("bytes beside the KV cache", num_bytes, self.num_bytes, config.max_request_memory_bytes),
        )
        for what, needed, taken, most in needs:
            if needed > most:
                raise InvalidRequest(f"the request needs {needed} {what}; this server has room for {most}")
            if taken + needed > most:
                self._refuse()
        self.num_queued += params.n
        self.num_queued_tokens += prompt_len
        self.num_bytes += num_bytes
        return Ticket(
            number=next(self._numbers),
            tenant=self._arrived(tenant),
            priority=params.priority,
            prompt_len=prompt_len,
            prompt_cost=num_characters if config.share_by == "characters" else prompt_len,
            num_choices=params.n,
            num_bytes=num_bytes,
            open_choices=set(range(params.n)),
        )

    def enter(self, ticket: Ticket, send: Callable[[], None]) -> None:
        """Let it wait for its turn, and then call `send`: at once, if the engine has room."""
        ticket.send = send
        heapq.heappush(ticket.tenant.waiting, (ticket.priority, ticket.number, ticket))
        self._start_next()

    def took(self, ticket: Ticket) -> None:
        """A token has come for one of its choices."""
        if ticket.queued:
            self._leave_queue(ticket)
            self._departures.append((time.monotonic(), ticket.num_choices))

    def charge(self, ticket: Ticket, *, num_tokens: int, num_characters: int) -> None:
        """Its owner got so much of an answer."""
        ticket.tenant.served += num_characters if self._config.share_by == "characters" else num_tokens

    def choice_ended(self, ticket: Ticket, choice: int) -> None:
        """The engine has room for another one. May be called again."""
        if choice in ticket.open_choices:
            ticket.open_choices.remove(choice)
            if ticket.started:
                self._num_sent -= 1
                self._start_next()

    def close(self, ticket: Ticket) -> None:
        """The request has ended, however. May be called again."""
        if ticket.closed:
            return
        ticket.closed = True
        if ticket.queued:
            self._leave_queue(ticket)
        self.num_bytes -= ticket.num_bytes
        ticket.tenant.num_live -= 1
        if ticket.started:
            self._num_sent -= len(ticket.open_choices)
        ticket.open_choices.clear()
        self._start_next()

    def retry_after_s(self) -> int:
        """When what waits now will have left the queue, at the rate at which it was left of late."""
        if not self._departures or not self.num_queued:
            return 1
        elapsed_s = time.monotonic() - self._departures[0][0]
        num_left = sum(number for _, number in self._departures)
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self.num_queued * elapsed_s / num_left)))

    def _refuse(self) -> NoReturn:
        self.num_refused += 1
        after_s = self.retry_after_s()
        message = f"the server has as much to do as it may take in ({self.num_queued} choices wait); try in {after_s} s"
        raise Overloaded(message, retry_after_s=after_s)

    def _arrived(self, name: str | None) -> _Tenant:
        """The tenant. One that was away does not claim what others got meanwhile."""
        tenant = self._tenants.setdefault(name, _Tenant())
        if not tenant.num_live:
            others = [other.served for other in self._tenants.values() if other.num_live]
            tenant.served = max(tenant.served, min(others, default=0.0))
        tenant.num_live += 1
        return tenant

    def _leave_queue(self, ticket: Ticket) -> None:
        ticket.queued = False
        self.num_queued -= ticket.num_choices
        self.num_queued_tokens -= ticket.prompt_len

    def _start_next(self) -> None:
        """Send to the engine what it has room for."""
        while self._num_sent < self._max_sent and (tenant := self._next_tenant()) is not None:
            _, _, ticket = heapq.heappop(tenant.waiting)
            ticket.started, ticket.sent_at = True, time.monotonic()
            tenant.served += ticket.prompt_cost
            self._num_sent += ticket.num_choices
            assert ticket.send is not None
            ticket.send()

    def _next_tenant(self) -> _Tenant | None:
        heads = [
            (first[0], tenant.served, first[1], tenant)
            for tenant in self._tenants.values()
            if (first := tenant.first()) is not None
        ]
        return min(heads, key=lambda head: head[:3])[3] if heads else None
