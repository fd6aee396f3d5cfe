"""An id for each request and call, in every log line about it: the client's own, if it is harmless, or a new one.

HTTP and gRPC carry it as `x-request-id`, in and out. It is not unique, as a client may repeat it; ids of answers are.
"""

import re
import uuid

HEADER = "x-request-id"
_HARMLESS = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)


def request_id_of(given: str | None) -> str:
    """The id that a client gave, unless it is missing, long, or holds anything that could be read as something else."""
    return given if given is not None and _HARMLESS.fullmatch(given) else f"req-{uuid.uuid4().hex}"
