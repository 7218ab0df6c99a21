"""The node's own log: structured lines on stderr. Never payloads, arguments or secrets.

structlog is imported with the first line that is written: most commands write none, and its import costs more than
they do.
"""

from __future__ import annotations

import functools
import sys
from typing import Any


class Log:
    """A logger by name. Each method takes an event in words and fields by name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, event: str, **fields: Any) -> None:
        """Something happened that an operator may want to know."""
        _logger(self._name).info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something is not as it should be, and was dealt with."""
        _logger(self._name).warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something needs an operator."""
        _logger(self._name).error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """A fault of Holdfast's own, with where it happened. Values of variables are left out."""
        _logger(self._name).error(event, **fields, trace=_trace())


@functools.cache
def _logger(name: str) -> Any:
    import structlog

    terminal = sys.stderr.isatty()
    last: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), last],
    ).bind(logger=name)


def _trace() -> list[str]:
    """The places of the current exception, innermost last, without its message."""
    import traceback

    kind, _, where = sys.exc_info()
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(where)]
    return [*places, kind.__name__ if kind else ""]
