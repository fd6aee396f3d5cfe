"""Chat completions that clients asked to keep, in a SQLite file: who they belong to, what was asked, what was answered.

completions   one row each; `place` grows, so that it is the order in which they came
metadata      one row for each key, to look completions up by
What belongs to one tenant is invisible to others. A tenant keeps the newest `limit` completions.
SQLite runs in a thread of its own, and never in the event loop.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from polyserve.api.conversation import Message, ToolCall
from polyserve.api.metadata import check_metadata
from polyserve.errors import InvalidRequest, NotFound, SettingsError
from polyserve.request import FinishReason

Order = Literal["asc", "desc"]
T = TypeVar("T")

MAX_PAGE = 100
SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, model TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS completions_by_tenant ON completions (tenant, place);
CREATE TABLE IF NOT EXISTS metadata (
    place INTEGER NOT NULL REFERENCES completions ON DELETE CASCADE, key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (place, key)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class StoredChoice:
    content: str
    finish_reason: FinishReason | Literal["tool_calls"]
    stop_reason: int | str | None
    tool_calls: list[ToolCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCompletion:
    """A conversation and its answer. Log-probabilities and token ids are not kept."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str
    messages: list[Message]
    choices: list[StoredChoice]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    metadata: dict[str, str] | None = None
    service_tier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is wanted: those behind `after`, oldest first unless `order` is "desc"."""

    after: str | None = None
    limit: int = 20
    order: Order = "asc"

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be at least 1 and at most {MAX_PAGE}, got {self.limit}", param="limit")
        if self.order not in ("asc", "desc"):
            raise InvalidRequest(f"order must be 'asc' or 'desc', got {self.order!r:.60}", param="order")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Only completions of this model, and with all of this metadata."""

    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_metadata(self.metadata)


class Store:
    """Use `open`."""

    def __init__(self, database: sqlite3.Connection, thread: ThreadPoolExecutor, *, limit: int) -> None:
        self._database = database
        self._thread = thread
        self._limit = limit

    @classmethod
    async def open(cls, path: Path, *, limit: int) -> "Store":
        """The store in this file, which is made if there is none. Raises SettingsError."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            database = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except (OSError, sqlite3.Error) as error:
            thread.shutdown()
            raise SettingsError(f"{path} cannot be used as a store of completions: {error}") from error
        return cls(database, thread, limit=limit)

    async def close(self) -> None:
        """Let go of the file."""
        await self._in_thread(self._database.close)
        self._thread.shutdown()

    async def put(self, tenant: str | None, completion: StoredCompletion) -> None:
        """Keep a completion, and forget the tenant's oldest where they are too many."""

        def work() -> None:
            row = (completion.id, tenant or "", completion.model, msgspec.json.encode(completion))
            with self._database as database:
                place = database.execute(
                    "INSERT INTO completions (id, tenant, model, body) VALUES (?, ?, ?, ?)", row
                ).lastrowid
                _write_metadata(database, place, completion.metadata)
                database.execute(
                    "DELETE FROM completions WHERE tenant = ?1 AND place <= (SELECT place FROM completions "
                    "WHERE tenant = ?1 ORDER BY place DESC LIMIT 1 OFFSET ?2)",
                    (tenant or "", self._limit),
                )

        await self._in_thread(work)

    async def get(self, tenant: str | None, completion_id: str) -> StoredCompletion:
        """One completion. Raises NotFound."""
        return await self._in_thread(lambda: self._find(tenant, completion_id)[1])

    async def list(self, tenant: str | None, page: Page, filters: Filters) -> tuple[list[StoredCompletion], bool]:
        """The completions of a page, and whether more follow. Raises NotFound if there is none of the id `after`."""

        def work() -> tuple[list[StoredCompletion], bool]:
            conditions, values = ["tenant = ?"], [tenant or ""]
            if filters.model is not None:
                conditions.append("model = ?")
                values.append(filters.model)
            for key, value in filters.metadata.items():
                conditions.append("place IN (SELECT place FROM metadata WHERE key = ? AND value = ?)")
                values += [key, value]
            if page.after is not None:
                conditions.append(f"place {'<' if page.order == 'desc' else '>'} {self._find(tenant, page.after)[0]}")
            query = (
                f"SELECT body FROM completions WHERE {' AND '.join(conditions)} "
                f"ORDER BY place {page.order} LIMIT {page.limit + 1}"
            )
            bodies = self._database.execute(query, values).fetchall()
            return [_read(body) for (body,) in bodies[: page.limit]], len(bodies) > page.limit

        return await self._in_thread(work)

    async def update(self, tenant: str | None, completion_id: str, metadata: dict[str, str] | None) -> StoredCompletion:
        """Put other metadata in the place of a completion's own. Raises NotFound."""

        def work() -> StoredCompletion:
            place, found = self._find(tenant, completion_id)
            changed = replace(found, metadata=metadata)
            with self._database as database:
                database.execute(
                    "UPDATE completions SET body = ? WHERE place = ?", (msgspec.json.encode(changed), place)
                )
                database.execute("DELETE FROM metadata WHERE place = ?", (place,))
                _write_metadata(database, place, metadata)
            return changed

        return await self._in_thread(work)

    async def delete(self, tenant: str | None, completion_id: str) -> None:
        """Forget a completion. Raises NotFound."""

        def work() -> None:
            place, _ = self._find(tenant, completion_id)
            with self._database as database:
                database.execute("DELETE FROM completions WHERE place = ?", (place,))

        await self._in_thread(work)

    def _find(self, tenant: str | None, completion_id: str) -> tuple[int, StoredCompletion]:
        row = self._database.execute(
            "SELECT place, body FROM completions WHERE id = ? AND tenant = ?", (completion_id, tenant or "")
        ).fetchone()
        if row is None:
            raise NotFound(f"there is no stored completion {completion_id!r:.80}", code="completion_not_found")
        return row[0], _read(row[1])

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def page_of_messages(completion: StoredCompletion, page: Page) -> tuple[list[tuple[str, Message]], bool]:
    """The messages that a completion answers, each with an id, and whether more follow. Raises NotFound."""
    named = [(f"{completion.id}-{index}", message) for index, message in enumerate(completion.messages)]
    if page.order == "desc":
        named.reverse()
    if page.after is not None:
        ids = [message_id for message_id, _ in named]
        if page.after not in ids:
            raise NotFound(f"there is no message {page.after!r:.80}", param="after", code="message_not_found")
        named = named[ids.index(page.after) + 1 :]
    return named[: page.limit], len(named) > page.limit


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # conversations are nobody else's business
    database = sqlite3.connect(path)
    database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;" + SCHEMA)
    return database


def _write_metadata(database: sqlite3.Connection, place: int | None, metadata: dict[str, str] | None) -> None:
    rows = [(place, key, value) for key, value in (metadata or {}).items()]
    database.executemany("INSERT INTO metadata (place, key, value) VALUES (?, ?, ?)", rows)


def _read(body: bytes) -> StoredCompletion:
    return msgspec.json.decode(body, type=StoredCompletion)
