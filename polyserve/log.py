"""Logging: one logger a module under `polyserve`, set up by the command line and never at import.

text   `2026-01-31 12:00:00 INFO polyserve.engine: message`, with ` [id]` before the message of a request
json   {"time", "level", "logger", "message", "request_id", "error"} on one line; the last two where there are any
Prompts and generated text are never logged. What a client can choose, such as a path, can be in a message: control
characters are escaped, so that nobody can write a line, or to a terminal, in the server's name.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

# The one thing that does not travel as an argument: whatever logs inside a request's task does not know of requests.
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def get_logger(module: str) -> logging.Logger:
    """The logger of a module, from its `__name__`."""
    return logging.getLogger(module)


def set_up_logging(level: str = "info", form: str | None = None) -> None:
    """Send the log lines of `polyserve` at `level` (debug, info, warning or error) and above to standard error.

    form: text or json; default: as before, or text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine() if (form or log_form()) == "json" else _TextLine())
    logger = logging.getLogger("polyserve")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def log_form() -> str:
    """How lines are written now: text or json."""
    handlers = logging.getLogger("polyserve").handlers
    return "json" if handlers and isinstance(handlers[0].formatter, _JsonLine) else "text"


def name_request(request_id: str) -> None:
    """Lines that are logged from now on by this task, and by those that it starts, carry the request's id."""
    _request_id.set(request_id)


class _TextLine(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        request_id = _request_id.get()
        about = "" if request_id is None else f" [{request_id}]"
        when = self.formatTime(record, self.datefmt)
        line = f"{when} {record.levelname} {record.name}:{about} {escaped(record.getMessage())}"
        if record.exc_info:  # indented, so that no line of it begins as a log line does
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escaped(part)}" for part in trace)
        return line


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = _request_id.get()
        if request_id is not None:
            line["request_id"] = request_id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII: everything else is escaped


def escaped(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in text)
