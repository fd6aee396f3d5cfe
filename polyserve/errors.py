"""Every error that a user can meet, and the one table that turns it into HTTP status, gRPC code and OpenAI's `type`.

A request's fault is one of these and never ends the engine loop. A bad argument of our own caller is a `ValueError`, a
broken invariant of ours an `assert`.
"""

from dataclasses import dataclass


class PolyServeError(Exception):
    """What went wrong.

    message: for the person who sent the request.  param: the field at fault.  code: a stable word for programs.
    retry_after_s: when to try again, where the same request can succeed later.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequest(PolyServeError):
    """The request can never succeed as it is: a field is malformed, unsupported or out of range."""


class Unauthenticated(PolyServeError):
    """The call came without a key that is known."""


class PermissionDenied(PolyServeError):
    """The call's key does not open what it asks for."""


class ModelNotFound(PolyServeError):
    """The request names a model that this server does not serve."""


class NotFound(PolyServeError):
    """The request names something that is not here, or is somebody else's."""


class Overloaded(PolyServeError):
    """The server holds as much as it may; the same request can succeed later."""


class NotReady(PolyServeError):
    """The server takes no requests at the moment: it ends, or its engine does not answer."""


class DeadlineExceeded(PolyServeError):
    """The time that the client gave is over."""


class Cancelled(PolyServeError):
    """The client went away or cancelled."""


class EngineDead(PolyServeError):
    """The engine process ended while this request was in it, or before."""


class InternalError(PolyServeError):
    """A fault of the server. The message says nothing about its insides."""


class ModelLoadError(PolyServeError):
    """A checkpoint is damaged, truncated, foreign or missing. The command line prints this line and exits with 2."""


class TrainingError(PolyServeError):
    """A recipe, a data set or a run of training cannot be used. The command line prints this line and exits with 2."""


class SettingsError(PolyServeError):
    """A file of keys or certificates cannot be used. The command line prints this line and exits with 2."""


@dataclass(frozen=True, slots=True)
class Status:
    """How one kind of error looks from outside."""

    http: int
    grpc: str  # name of the grpc.StatusCode
    openai_type: str  # `error.type` in the error object


_STATUS: dict[type[PolyServeError], Status] = {
    InvalidRequest: Status(400, "INVALID_ARGUMENT", "invalid_request_error"),
    Unauthenticated: Status(401, "UNAUTHENTICATED", "invalid_request_error"),
    PermissionDenied: Status(403, "PERMISSION_DENIED", "permission_error"),
    ModelNotFound: Status(404, "NOT_FOUND", "not_found_error"),
    NotFound: Status(404, "NOT_FOUND", "not_found_error"),
    Overloaded: Status(429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
    NotReady: Status(503, "UNAVAILABLE", "service_unavailable_error"),
    DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED", "timeout_error"),
    Cancelled: Status(499, "CANCELLED", "cancelled_error"),
    EngineDead: Status(503, "UNAVAILABLE", "service_unavailable_error"),
    InternalError: Status(500, "INTERNAL", "internal_error"),
    ModelLoadError: Status(500, "INTERNAL", "internal_error"),
    TrainingError: Status(500, "INTERNAL", "internal_error"),
    SettingsError: Status(500, "INTERNAL", "internal_error"),
}


def status_of(error: PolyServeError) -> Status:
    """The row of the table for this error's class."""
    return _STATUS[type(error)]
