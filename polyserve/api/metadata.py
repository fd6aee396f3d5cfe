"""What clients may attach to a stored completion: OpenAI's limits, over both protocols."""

from collections.abc import Mapping

from polyserve.errors import InvalidRequest

MAX_ENTRIES = 16
MAX_KEY_CHARACTERS = 64
MAX_VALUE_CHARACTERS = 512


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raise InvalidRequest if there is too much of it."""
    metadata = metadata or {}
    if len(metadata) > MAX_ENTRIES:
        message = f"metadata must have at most {MAX_ENTRIES} entries, got {len(metadata)}"
        raise InvalidRequest(message, param="metadata")
    for what, most, texts in (
        ("keys", MAX_KEY_CHARACTERS, metadata.keys()),
        ("values", MAX_VALUE_CHARACTERS, metadata.values()),
    ):
        longest = max(map(len, texts), default=0)
        if longest > most:
            message = f"metadata must have {what} of at most {most} characters, got one of {longest}"
            raise InvalidRequest(message, param="metadata")
