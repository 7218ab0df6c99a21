"""The watch over kills: a thread that reads the kill generation, and ends what runs when it cannot.

A node that cannot read the generation for FREEZE_AFTER seconds stops its boundaries and connectors where they stand; at
END_AFTER it ends them. Both happen in this thread, so that a busy or hanging event loop is no way around them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from holdfast.errors import StoreError
from holdfast.journal.base import Store

INTERVAL = 0.25
FREEZE_AFTER = 2.0
END_AFTER = 5.0


class Held(Protocol):
    """What can be stopped where it stands."""

    def freeze(self) -> None:
        """Stop every process, reversibly."""

    def thaw(self) -> None:
        """Let them go on."""

    def end(self) -> None:
        """End every process."""


class Watch:
    """Reads the kill generation on a connection of its own."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        held: Held,
        on_change: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_store = open_store
        self._held = held
        self._on_change = on_change
        self._monotonic = monotonic
        self._store: Store | None = None
        self._generation: int | None = None
        self._read_at = monotonic()
        self._state = "running"
        self._nudged = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="holdfast-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def nudge(self) -> None:
        """Look now."""
        self._nudged.set()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._nudged.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._store is not None:
            self._store.close()

    def look(self) -> None:
        """One look: read the generation, or act on not having read it for too long."""
        try:
            if self._store is None:
                self._store = self._open_store()
            generation = self._store.kill_generation()
        except StoreError:
            self._blind()
            return
        self._read_at = self._monotonic()
        if self._state == "frozen":
            self._held.thaw()
        self._state = "running"
        if generation != self._generation:
            known, self._generation = self._generation is not None, generation
            if known:
                self._on_change()

    def _blind(self) -> None:
        dark = self._monotonic() - self._read_at
        if dark >= END_AFTER and self._state != "ended":
            self._state = "ended"
            self._held.end()
        elif dark >= FREEZE_AFTER and self._state == "running":
            self._state = "frozen"
            self._held.freeze()

    def _run(self) -> None:
        while not self._closing:
            self.look()
            self._nudged.wait(INTERVAL)
            self._nudged.clear()
