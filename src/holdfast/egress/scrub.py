"""Takes secrets out of what comes back, in whatever spelling and however it was cut into pieces.

The result is that of one left-to-right pass over the whole, longest match first: where a stream was cut makes no
difference. What may still become a secret is held back, and nothing else; so an answer that holds none is not delayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import re2

from holdfast.egress.base import Headers
from holdfast.egress.spellings import ENCODINGS, Steps, follow, forms, longest, opening, opening_begun, steps

MARK = b"[redacted]"
"""What stands in the place of a secret."""
SHORTEST = 6
"""Characters of a secret that is looked for; a shorter one would be found everywhere."""
OPENING = 8
"""Units by which a form is first recognised."""
MEMORY = 1 << 26
"""Bytes that the automata may take, at most; they take what the texts that they saw need."""


class Secrets:
    """The secrets that a scrubber looks for, ready for use. Immutable; shared by every response.

    Raises:
        ValueError: they are too many or too long to be looked for.
    """

    def __init__(self, secrets: Iterable[str], encodings: Sequence[str] = ENCODINGS) -> None:
        texts = sorted({secret for secret in secrets if len(secret) >= SHORTEST})
        self._forms = list(dict.fromkeys(form for text in texts for form in forms(text, encodings)))
        self.lag = max(map(longest, self._forms), default=0)
        """Bytes that are held back at most."""
        self._by_first: dict[int, list[Steps]] = {}
        """Forms by the byte that they may begin with."""
        for form in map(steps, self._forms):
            for first in form[0]:
                self._by_first.setdefault(first, []).append(form)
        self._opening = self._begun = None
        if self._forms:
            self._opening = _compiled({opening(form, OPENING) for form in self._forms}, b"")
            self._begun = _compiled({opening_begun(form, OPENING) for form in self._forms}, b"\\z")

    def __bool__(self) -> bool:
        return bool(self._forms)

    def scrub(self, data: bytes) -> bytes:
        """A whole text without secrets."""
        return self.cut(data, last=True)[0]

    def text(self, text: str) -> str:
        """The same for a message or a record."""
        data = text.encode("utf-8", "surrogatepass")
        clean = self.scrub(data)
        return text if clean == data else clean.decode("utf-8", "replace")

    def headers(self, headers: Headers) -> Headers:
        """The same for the fields of a response, names included."""
        if not self._forms:
            return headers
        return tuple((name if self.scrub(name) == name else b"redacted", self.scrub(value)) for name, value in headers)

    def stream(self) -> Scrubber:
        """A scrubber for one response."""
        return Scrubber(self)

    def cut(self, data: bytes, covered: int = 0, *, last: bool) -> tuple[bytes, bytes, int]:
        """What may go on, scrubbed; what must wait for more; and how many bytes of that are ``covered`` by a mark.

        A match may begin within the last byte of the one before: in base64 neighbours share a character.
        """
        if self._opening is None or self._begun is None:
            return data, b"", 0
        out: list[bytes] = []
        at = 0
        waits = None if last else self._begun.search(data)
        while True:
            found = self._opening.search(data, at)
            if waits is not None and waits.start() < at:
                waits = self._begun.search(data, at)
            if waits is not None and (found is None or waits.start() < found.start()):
                start = waits.start()
                return b"".join([*out, data[covered:start]]), data[start:], max(0, covered - start)
            if found is None:
                return b"".join([*out, data[covered:]]), b"", 0
            start = found.start()
            followed = [follow(form, data, start) for form in self._by_first[data[start]]]
            if not last and any(unfinished for _, unfinished in followed):
                return b"".join([*out, data[covered:start]]), data[start:], max(0, covered - start)
            end = max(end for end, _ in followed)
            if end < 0:
                at = start + 1
            else:
                out += [data[covered:start], MARK]
                at, covered = end - 1, end


class Scrubber:
    """Scrubs one stream: a :class:`holdfast.egress.base.Transform`."""

    __slots__ = ("_covered", "_secrets", "_waiting")

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._waiting = b""
        self._covered = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; give what may go on."""
        return self._go_on(data, last=False)

    def finish(self) -> bytes:
        """No more comes: give what was held back."""
        return self._go_on(b"", last=True)

    def _go_on(self, data: bytes, *, last: bool) -> bytes:
        out, self._waiting, self._covered = self._secrets.cut(self._waiting + data, self._covered, last=last)
        return out


def _compiled(expressions: Iterable[bytes], tail: bytes) -> re2._Regexp:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.max_mem = MEMORY
    options.log_errors = False
    try:
        return re2.compile(b"(?:" + b"|".join(sorted(filter(None, expressions))) + b")" + tail, options)
    except re2.error:
        raise ValueError("the secrets are too many to be looked for in responses") from None
