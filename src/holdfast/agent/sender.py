"""The sending half of the worker's channel: numbers, frames, large values, and back-pressure without a lock-up.

A socket that is full must not stop the worker from reading: the node does not listen to a worker that does not read.
"""

from __future__ import annotations

import _socket
import os
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from holdfast import wire
from holdfast.errors import UsageError

ENDED = 75
"""Exit status when the node ended the channel (EX_TEMPFAIL: another incarnation goes on)."""
BROKEN = 76
"""Exit status when the node broke the protocol (EX_PROTOCOL)."""
READ = 64 << 10
"""Bytes of one read."""

Answer = wire.Go | wire.Reply | wire.Fault | wire.Chunk


class Slot:
    """Where the answers of one call (or, for ``spawn_many``, of several) arrive."""

    __slots__ = ("body", "credit", "id", "messages", "owed", "stream", "wake")

    def __init__(self, *, body: bool = False, stream: bool = False) -> None:
        self.id = 0
        self.messages: deque[Answer] = deque()
        self.owed = True
        """The node has to answer; False while the body runs."""
        self.body = body
        """Go may come."""
        self.stream = stream
        """Chunks may come."""
        self.credit = wire.WINDOW
        """Chunks that the node may still send."""
        self.wake: Callable[[], object] | None = None
        """Called by whoever brings a message while another thread or a task waits for it."""


def end_process(why: str, status: int) -> NoReturn:
    """End this process now: no ``finally``, no ``atexit``, no ``except`` of the author's."""
    try:
        if status != ENDED:
            os.write(2, f"holdfast worker: {why}\n".encode())
    finally:
        os._exit(status)


def _nobody() -> None:
    """Nobody else waits."""


class Sender:
    """What may be said to the node, in one order. The reading half is :class:`holdfast.agent.channel.Channel`."""

    def __init__(self, sock: _socket.socket, end: Callable[[str, int], NoReturn] = end_process) -> None:
        self._sock = sock
        self._end = end
        self._send_lock = allocate_lock()
        self._id = 0
        self._blob = 0
        self._slots: dict[int, Slot] = {}
        """Calls for which the node owes something."""
        self._dropped: set[int] = set()
        """Calls that were cancelled: their late answers are thrown away."""
        self._abandoned: deque[Slot] = deque()
        self._later: deque[wire.FromWorker] = deque()
        """What a thread that reads has to say: it must not wait for one that sends, which may wait for it to read."""
        self._said: tuple[int, ...] = ()
        """What the latest Idle named, while nothing was said since."""
        self._lead = allocate_lock()
        """Held by whoever reads."""
        self._leader = 0
        """Ident of the thread that holds the lead; 0: none."""
        self._poke: Callable[[], object] | None = None
        """Makes the loop that leads look into ``_unread``; None: no loop leads."""
        self._unread: deque[bytes] = deque()
        """What was read while a send had to wait, in order."""
        self._pass_lead: Callable[[], None] = _nobody
        """Sees to it that someone reads, after the lead was given back."""

    def send(self, message: wire.FromWorker) -> None:
        """Send a message that holds no large value."""
        data = wire.frame(message)
        with self._send_lock:
            self._write(data)
        if self._later:
            self._say_later()

    def _send_soon(self, message: wire.FromWorker) -> None:
        """Send from where the channel is read."""
        self._later.append(message)
        self._say_later()

    def _say_later(self) -> None:
        # Whoever holds the lock looks here again after it let go.
        while self._later and self._send_lock.acquire(False):
            try:
                while self._later:
                    self._write(wire.frame(self._later.popleft()))
            finally:
                self._send_lock.release()

    def post(self, make: Callable[[wire.Value], wire.FromWorker], data: bytes) -> None:
        """Send a message that is no call, with a value."""
        with self._send_lock:
            self._write(wire.frame(make(self._value(data))))
        if self._later:
            self._say_later()

    def open(self, slot: Slot, make: Callable[[int, wire.Value], wire.FromWorker], data: bytes = b"") -> int:
        """Send a call; its answers go to ``slot``. Numbers rise in the order of sending.

        Raises:
            UsageError: too many calls are open.
        """
        if len(self._slots) >= wire.MAX_OPEN_CALLS:
            raise UsageError(f"more than {wire.MAX_OPEN_CALLS} calls are open at once; gather fewer at a time")
        while self._abandoned:
            self.cancel(self._abandoned.popleft())
        with self._send_lock:
            self._id = number = self._id + 1
            slot.id = number
            self._slots[number] = slot
            value = wire.Value(data) if len(data) <= wire.INLINE_VALUE else self._value(data)
            self._write(wire.frame(make(number, value)))
        if self._later:
            self._say_later()
        return number

    def branch(self, scope: int, group: int, index: int) -> int:
        """Open a scope of its own inside ``scope``."""
        with self._send_lock:
            self._id = number = self._id + 1
            self._write(wire.frame(wire.Branch(number, scope, group, index)))
        if self._later:
            self._say_later()
        return number

    def close(self, slot: Slot, data: bytes) -> None:
        """A body returned: nothing more comes for its call."""
        self._slots.pop(slot.id, None)
        with self._send_lock:
            value = wire.Value(data) if len(data) <= wire.INLINE_VALUE else self._value(data)
            self._write(wire.frame(wire.Close(slot.id, value)))
        if self._later:
            self._say_later()

    def cancel(self, slot: Slot) -> None:
        """Nobody wants the answer of a call any more."""
        if self._slots.pop(slot.id, None) is not None:
            self._dropped.add(slot.id)
            self.send(wire.Cancel(slot.id))

    def drop(self, slot: Slot) -> None:
        """Throw away whatever still comes for a call."""
        if self._slots.pop(slot.id, None) is not None:
            self._dropped.add(slot.id)

    def abandon(self, slot: Slot) -> None:
        """As :meth:`cancel`, from where nothing may be sent: it goes out with the next call."""
        self._abandoned.append(slot)

    def fail(self, slot: Slot, close: wire.Close) -> None:
        """A body raised: Go or Fault comes next."""
        slot.owed = True
        self.send(close)

    def _value(self, data: bytes) -> wire.Value:
        if len(data) > wire.INLINE_VALUE:
            self._blob += 1
        parts, value = wire.pack(data, self._blob)
        for part in parts:
            self._write(wire.frame(part))
        return value

    def _write(self, data: bytes) -> None:
        self._said = ()
        try:
            sent = self._sock.send(data, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
        if sent < len(data):
            self._write_rest(memoryview(data)[sent:])

    def _write_rest(self, rest: memoryview) -> None:
        """The socket is full. The node does not listen to a worker that does not read, so read while waiting."""
        import select

        while rest:
            mine = self._leader == get_ident()
            lead = mine or self._lead.acquire(False)
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLOUT | (select.POLLIN if lead else 0))
            # Who leads now may stop reading meanwhile, so look again after a while.
            poll.poll(None if lead else 50)
            try:
                if lead:
                    self._unread.append(self._sock.recv(READ, _socket.MSG_DONTWAIT) or self._lost())
            except BlockingIOError:
                pass
            except OSError:
                self._lost()
            if lead and not mine:
                self._lead.release()
                self._pass_lead()
            elif mine and self._poke is not None:
                self._poke()
            try:
                rest = rest[self._sock.send(rest, _socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:
                self._lost()

    def _lost(self) -> NoReturn:
        self._end("the node ended the channel", ENDED)
