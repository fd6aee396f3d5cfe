"""API keys: names and hashes of those who may call. The keys themselves are nowhere on the server.

Line         NAME sha256:HEX [admin]     one key; `#` begins a comment
Found in     the file of `--api-keys-file`, and the variable POLYSERVE_API_KEYS, where commas part lines as well
A name is the tenant in fairness, logs and the prefix cache; several keys may share one, so that keys can be replaced.
A key is 256 random bits, which nobody can find from a hash: a slow hash, as passwords need, would only cost time.
Without any key configured, the server is open to whoever reaches it.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from polyserve.errors import PermissionDenied, SettingsError, Unauthenticated

VARIABLE = "POLYSERVE_API_KEYS"
SCHEME = "Bearer "
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+sha256:(?P<digest>[0-9a-fA-F]{64})(?P<admin>\s+admin)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who has the key, and what is known of it."""

    name: str
    digest: bytes  # SHA-256
    admin: bool = False

    def line(self) -> str:
        return f"{self.name} sha256:{self.digest.hex()}{' admin' if self.admin else ''}"


def new_key(name: str, *, admin: bool = False) -> tuple[str, ApiKey]:
    """A key for its owner, and what the server keeps of it."""
    key = f"ps-{secrets.token_urlsafe(32)}"
    entry = ApiKey(name, _digest(key), admin)
    if _LINE.fullmatch(entry.line()) is None:
        raise SettingsError(f"a key's name has 1 to 64 letters, digits and . _ @ -, got {name!r}")
    return key, entry


class KeyRing:
    """The keys that count now."""

    def __init__(self, keys: Iterable[ApiKey] = (), *, file: Path | None = None) -> None:
        """file: read now, and again by `reload`. Raises SettingsError, which never repeats what stands there."""
        self._fixed = tuple(keys)
        self._file = file
        self._keys: tuple[ApiKey, ...] = ()
        self.reload()

    @classmethod
    def from_environment(cls, file: str | None) -> "KeyRing":
        """Keys of the file and of the variable, which is taken away: child processes have no use for it."""
        lines = re.split(r"[,\n]", os.environ.pop(VARIABLE, ""))
        return cls(parse_keys(lines, source=VARIABLE), file=None if file is None else Path(file))

    def reload(self) -> None:
        """Read the file again. Raises SettingsError, and then the keys stay as they were."""
        keys = self._fixed
        if self._file is not None:
            try:
                lines = self._file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{self._file}: cannot be read: {error}") from error
            keys += parse_keys(lines, source=str(self._file))
            if not keys:
                raise SettingsError(f"{self._file}: holds no key, so nobody could call; `polyserve keys` makes one")
        self._keys = keys

    @property
    def required(self) -> bool:
        """Whether calls need a key."""
        return bool(self._keys)

    def authenticate(self, authorization: str | None, *, admin: bool = False) -> str | None:
        """The name that the header's key belongs to; None where no keys are required.

        Raises Unauthenticated, or PermissionDenied if `admin` is asked for and the key is none.
        """
        if not self.required:
            return None
        found = self._find(authorization or "")
        if found is None:
            if not authorization:
                raise Unauthenticated("an API key is required, as 'Authorization: Bearer KEY'")
            raise Unauthenticated("the API key is not known here", code="invalid_api_key")
        if admin and not found.admin:
            raise PermissionDenied("this needs an admin's API key", code="admin_key_required")
        return found.name

    def _find(self, authorization: str) -> ApiKey | None:
        """Compares with every key, and each in constant time, so that time says nothing about any of them."""
        digest = _digest(authorization[len(SCHEME) :])
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if authorization[: len(SCHEME)].lower() == SCHEME.lower() else None


def parse_keys(lines: Iterable[str], *, source: str) -> tuple[ApiKey, ...]:
    """The keys of some lines. Raises SettingsError."""
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise SettingsError(
                f"{source}: line {number} is not NAME sha256:HEX [admin]; `polyserve keys` makes such lines"
            )
        keys.append(ApiKey(match["name"], bytes.fromhex(match["digest"]), match["admin"] is not None))
    return tuple(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
