"""``ctx.log``, and what the author's code prints: lines of the run's record, never bytes on the channel."""

from __future__ import annotations

import io
from _thread import allocate_lock
from typing import Any

from holdfast import wire
from holdfast.agent.channel import Channel
from holdfast.errors import PayloadError
from holdfast.values import dump

MAX_LINE = 8192
"""Characters of one line."""
MAX_FIELDS = 8192
"""Bytes of one line's fields."""
MAX_PRINTED = 10_000
"""Lines that one process may print; what is beyond is dropped, and said once."""


class Log:
    """``ctx.log``: ``ctx.log.info("paid", invoice=7)``. Calling it is the same as ``info``."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def debug(self, message: object, *args: object, **fields: Any) -> None:
        """A line for the author."""
        self._say("debug", message, args, fields)

    def info(self, message: object, *args: object, **fields: Any) -> None:
        """A line for whoever follows the run."""
        self._say("info", message, args, fields)

    def warning(self, message: object, *args: object, **fields: Any) -> None:
        """Something that someone should look at."""
        self._say("warning", message, args, fields)

    def error(self, message: object, *args: object, **fields: Any) -> None:
        """Something that went wrong."""
        self._say("error", message, args, fields)

    __call__ = info

    def _say(self, level: str, message: object, args: tuple[object, ...], fields: dict[str, Any]) -> None:
        text = str(message)
        if args:
            try:
                text %= args
            except (TypeError, ValueError):
                text = " ".join((text, *map(str, args)))
        say(self._channel, level, text, fields)


def say(channel: Channel, level: str, text: str, fields: dict[str, Any]) -> None:
    """Send one line, bounded."""
    data = b""
    if fields:
        try:
            data = dump(fields, "the fields", MAX_FIELDS)
        except PayloadError:
            shown = {name[:100]: repr(value)[:200] for name, value in list(fields.items())[:20]}
            data = dump(_clean(shown), "the fields")
    channel.post(lambda value: wire.Log(level, _clean(text[:MAX_LINE]), value), data)


def _clean(value: Any) -> Any:
    """Text without lone surrogates, which no UTF-8 can carry."""
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return value.encode("utf-8", "replace").decode()


class Printed(io.RawIOBase):
    """The raw end of the author's ``sys.stdout`` or ``sys.stderr``: each line becomes a line of the log."""

    left = MAX_PRINTED
    kept: list[tuple[str, str]] | None = None
    """Streams and lines of code that was loaded ahead of its run; None: each line goes out at once."""

    def __init__(self, channel: Channel, stream: str) -> None:
        super().__init__()
        self._channel = channel
        self._stream = stream
        self._line = bytearray()
        self._lock = allocate_lock()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes; whole lines go out."""
        taken = bytes(data)
        with self._lock:
            self._line += taken
            *lines, rest = self._line.split(b"\n")
            while len(rest) > MAX_LINE:
                lines.append(rest[:MAX_LINE])
                del rest[:MAX_LINE]
            self._line = rest
        for line in lines:
            self._out(line)
        return len(taken)

    def finish(self) -> None:
        """Send what has no line end."""
        if self._line:
            self._out(self._line)
            self._line = bytearray()

    def _out(self, line: bytes | bytearray) -> None:
        if Printed.left > 0:
            Printed.left -= 1
            text = line.decode("utf-8", "replace")
            if not Printed.left:
                text = f"more than {MAX_PRINTED} lines were printed; the rest is dropped"
            if Printed.kept is not None:
                Printed.kept.append((self._stream, text))
                return
            say(self._channel, "info", text, {"stream": self._stream})

    @classmethod
    def release(cls, channel: Channel) -> None:
        """There is a run now: its lines go out, those that were kept first."""
        kept, cls.kept = cls.kept, None
        for stream, text in kept or ():
            say(channel, "info", text, {"stream": stream})


def as_text(raw: Printed) -> io.TextIOWrapper:
    """A text stream to put in the place of ``sys.stdout`` or ``sys.stderr``."""
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
