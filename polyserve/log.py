"""Logging: one logger a module under `polyserve`, set up by the command line and never at import.

Line  `2026-01-31 12:00:00 INFO polyserve.engine: message`. Prompts and generated text are never logged.
"""

import logging
import sys


def get_logger(module: str) -> logging.Logger:
    """The logger of a module, from its `__name__`."""
    return logging.getLogger(module)


def set_up_logging(level: str = "info") -> None:
    """Send the log lines of `polyserve` at `level` (debug, info, warning or error) and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("polyserve")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
