"""The worker's end of the broker's channel: calls go out, answers come back to whoever waits for them.

There is no reader thread. Whoever waits for an answer reads the channel itself: a lone thread sends its call and reads
until its own answer comes, without a lock handed over or a thread woken. When several threads wait, one of them leads:
it reads for all, wakes the others with what is theirs, and hands the lead over when it has its own. An asyncio loop
leads through ``add_reader`` (see :mod:`holdfast.agent.loop`).

When the channel ends, or the node breaks the protocol, the process ends at once: suspension and kill are process death,
and no ``except`` of the author's may swallow them.
"""

from __future__ import annotations

import _socket
import os
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from holdfast import wire
from holdfast.agent.sender import BROKEN, ENDED, READ, Answer, Sender, Slot, end_process
from holdfast.errors import ProtocolError, UsageError

BLOB_BYTES = 64 << 20
"""Bytes of large values that the node may have under way to this worker."""


class Channel(Sender):
    """One connected stream socket to the node."""

    def __init__(self, sock: _socket.socket, end: Callable[[str, int], NoReturn] = end_process) -> None:
        super().__init__(sock, end)
        self._deframer = wire.Deframer()
        self._blobs = wire.BlobReader(BLOB_BYTES)
        self._begin: wire.Begin | None = None
        self._pass_lead = self._promote
        self._followers: dict[int, Slot] = {}
        """Thread ident to what it waits for while another leads."""
        self._loops: list[Callable[[], object]] = []
        """Loops that want the lead, when no thread does."""
        self._state = allocate_lock()
        self._running = 1
        """Branches of the author's code, blocked or not."""
        self._blocked: dict[int, Slot] = {}
        """Branches that wait, by their slot."""
        self._parked: set[int] = set()
        """Open calls that wait for a person, a signal, a child or a timer: the node said so."""

    # waiting, as a thread

    def wait(self, slot: Slot) -> Answer:
        """The next answer for ``slot``. Blocks this thread."""
        messages = slot.messages
        if not messages:
            self._blocked[id(slot)] = slot
            if self._parked:
                self.settle()
            try:
                if self._lead.acquire(False):
                    self._read_for(messages)
                    if self._followers or self._loops:
                        self._promote()
                else:
                    self._follow(slot)
            finally:
                self._blocked.pop(id(slot), None)
        return messages.popleft()

    def _read_for(self, messages: deque[Answer]) -> None:
        """Lead until there is a message; give the lead back."""
        self._leader = get_ident()
        try:
            while not messages:
                self._pump()
        finally:
            self._leader = 0
            self._lead.release()

    def _follow(self, slot: Slot) -> None:
        messages, me = slot.messages, get_ident()
        if self._leader == me:
            # This thread's own loop leads and cannot turn while we block it: read here.
            while not messages:
                self._pump()
            return
        gate = allocate_lock()
        gate.acquire()

        def wake() -> None:
            try:
                gate.release()
            except RuntimeError:
                return  # the gate is open already

        slot.wake = wake
        self._followers[me] = slot
        try:
            while not messages:
                if self._lead.acquire(False):
                    self._read_for(messages)
                else:
                    gate.acquire()
        finally:
            slot.wake = None
            del self._followers[me]
            self._promote()

    def _promote(self) -> None:
        """See to it that someone reads, now that this thread stopped reading or waiting."""
        with self._state:
            if self._lead.locked():
                return
            for slot in list(self._followers.values()):
                if not slot.messages and (wake := slot.wake) is not None:
                    wake()
                    return
            for want in self._loops:
                want()

    def begin(self) -> wire.Begin:
        """The node's first message. Blocks."""
        with self._lead:
            while self._begin is None:
                self._pump()
            return self._begin

    # waiting, as an asyncio loop (holdfast.agent.loop)

    @property
    def descriptor(self) -> int:
        """For ``add_reader``."""
        return self._sock.fileno()

    def loops(self, want: Callable[[], object], there: bool) -> None:
        """A loop came, which ``want`` asks to lead, or went."""
        with self._state:
            if there:
                self._loops.append(want)
            else:
                self._loops.remove(want)

    def take_lead(self, poke: Callable[[], object]) -> bool:
        """Let this thread's loop lead; False when another reads. ``poke`` makes it call :meth:`read_ready` soon."""
        if not self._lead.acquire(False):
            return False
        self._leader = get_ident()
        self._poke = poke
        return True

    def yield_lead(self) -> None:
        """The loop that leads stops."""
        self._poke = None
        self._leader = 0
        self._lead.release()
        self._promote()

    def read_ready(self) -> None:
        """Dispatch what is there, without blocking."""
        while self._unread:
            self._take(self._unread.popleft())
        try:
            data = self._sock.recv(READ, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._lost()
        self._take(data or self._lost())

    def block(self, slot: Slot) -> None:
        """A branch waits for ``slot``."""
        self._blocked[id(slot)] = slot
        if self._parked:
            self.settle()

    def unblock(self, slot: Slot) -> None:
        """It does not wait any more."""
        self._blocked.pop(id(slot), None)

    # reading

    def _pump(self) -> None:
        if self._unread:
            data = self._unread.popleft()
        else:
            try:
                data = self._sock.recv(READ)
            except OSError:
                self._lost()
            if not data:
                self._lost()
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            if not self._deframer.pending and len(data) == 4 + int.from_bytes(data[:4], "big") <= wire.MAX_FRAME:
                self._dispatch(wire.decode(wire.node_decoder, data[4:]))
                return
            self._deframer.feed(data)
            for body in self._deframer:
                self._dispatch(wire.decode(wire.node_decoder, body))
        except ProtocolError as error:
            self._end(f"the node broke the protocol: {error}", BROKEN)

    def _dispatch(self, message: wire.FromNode) -> None:
        kind = type(message)
        if isinstance(message, wire.Blob):
            self._blobs.add(message)
            return
        if isinstance(message, wire.Begin):
            if self._begin is not None or message.version != wire.VERSION:
                raise ProtocolError(f"begin of version {message.version} was said twice, or is not {wire.VERSION}")
            value = wire.Value(self._blobs.take(message.input))
            fields = {name: getattr(message, name) for name in message.__struct_fields__}
            self._begin = wire.Begin(**{**fields, "input": value})
            return
        if isinstance(message, wire.Reply) and message.value.blob:
            message = wire.Reply(message.id, wire.Value(self._blobs.take(message.value)), message.replayed)
        slot = self._slots.get(message.id)
        if slot is None:
            if message.id not in self._dropped:
                raise ProtocolError(f"{wire.describe(message)} answers call {message.id}, which is not open")
            if kind is wire.Go:
                self._send_soon(wire.Close(message.id, error="CancelledError", message="nobody waits for this"))
            elif kind is wire.Reply or kind is wire.Fault:
                self._dropped.discard(message.id)
            return
        if not slot.owed:
            raise ProtocolError(f"{wire.describe(message)} answers call {message.id}, whose body runs here")
        if isinstance(message, wire.Parked):
            self._parked.add(message.id)
            self.settle()
            return
        if kind is wire.Chunk:
            slot.credit -= 1
            if not slot.stream or slot.credit < 0:
                raise ProtocolError(f"call {message.id} got a chunk that it has no credit for")
        elif kind is wire.Go:
            if not slot.body:
                raise ProtocolError(f"call {message.id} has no body to run")
            slot.owed = False
            self._parked.discard(message.id)
        else:
            del self._slots[message.id]
            self._parked.discard(message.id)
        slot.messages.append(message)
        if (wake := slot.wake) is not None:
            wake()

    # who runs, who waits

    def running(self, change: int) -> None:
        """Branches of the author's code came (+) or went (-)."""
        with self._state:
            self._running += change
        self.settle()

    def settle(self) -> None:
        """Say Idle when every branch waits for something parked: the process is not needed."""
        if not self._parked:
            return
        blocked = {id(slot) for slot in list(self._blocked.values()) if not slot.messages}
        numbers = tuple(sorted(number for number, slot in list(self._slots.items()) if id(slot) in blocked))
        if len(blocked) >= self._running and self._parked.issuperset(numbers) and numbers != self._said:
            self._send_soon(wire.Idle(numbers))
            self._said = numbers

    # process

    def forget(self) -> None:
        """In a forked child: the channel is not its own."""
        self._sock.close()


def from_environment() -> Channel:
    """The channel whose descriptor ``HOLDFAST_CHANNEL`` names; hidden from the author's code and its programs.

    Raises:
        UsageError: there is none: this process was not started by a node.
    """
    number = os.environ.pop("HOLDFAST_CHANNEL", "")
    if not number.isdecimal():
        raise UsageError("HOLDFAST_CHANNEL names no descriptor; this program is started by a Holdfast node")
    try:
        os.set_inheritable(int(number), False)
        sock = _socket.socket(fileno=int(number))
    except OSError as error:
        raise UsageError(f"descriptor {number} of HOLDFAST_CHANNEL is no socket ({error.strerror})") from None
    channel = Channel(sock)
    os.register_at_fork(after_in_child=channel.forget)
    return channel


__all__ = ["BROKEN", "ENDED", "Answer", "Channel", "Slot", "end_process", "from_environment"]
