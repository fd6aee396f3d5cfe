"""How long a client gives a request: the header `X-Request-Timeout-Ms`, in whole milliseconds from its arrival."""

from fastapi import Request

from polyserve.errors import InvalidRequest

HEADER = "X-Request-Timeout-Ms"
MAX_DIGITS = 12


def timeout_of(request: Request) -> float | None:
    """The header in seconds, or None. Raises InvalidRequest."""
    value = request.headers.get(HEADER)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS and int(value) > 0):
        raise InvalidRequest(f"{HEADER} must be a whole number of milliseconds, at least 1", param=HEADER)
    return int(value) / 1000
