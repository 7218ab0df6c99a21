"""The way out, seen from inside: connections to the egress proxy, asked for over a channel of the boundary's own.

The inside asks with the number of the scope in which its code stands (four bytes, big-endian; ANY: not known) and
gets one byte back: GIVEN, with one end of a fresh socket pair, or REFUSED. The other end is the proxy's and never was
inside, so nothing that is done to this one can hold the node up.
"""

from __future__ import annotations

import _socket
import os
import sys
from _thread import allocate_lock

from holdfast.agent.scope import current
from holdfast.errors import StepError

VARIABLE = "HOLDFAST_EGRESS"
"""Environment variable with the channel's descriptor."""
ANY = 0xFFFF_FFFF
"""Scope of a connection that any program inside may have asked for."""
GIVEN, REFUSED = b"\1", b"\0"
CLOSED = "this boundary has no way out: its egress channel has ended"


class Way:
    """The egress channel of this process."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._channel = _socket.socket(fileno=descriptor)
        self._lock = allocate_lock()

    def dial(self, scope: int = ANY) -> int:
        """The descriptor of a new connection to the proxy; the caller closes it.

        Raises:
            StepError: too many are open, or the channel has ended.
        """
        with self._lock:
            try:
                self._channel.sendall(scope.to_bytes(4, "big"))
                answer, ancillary, _, _ = self._channel.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
            except OSError:
                raise StepError(CLOSED) from None
        if answer == REFUSED:
            raise StepError("too many connections to the egress proxy are open; close some first")
        if answer != GIVEN or not ancillary:
            raise StepError(CLOSED)
        return int.from_bytes(ancillary[0][2][:4], sys.byteorder)


_way: Way | None = None


def way() -> Way:
    """The process's egress channel, taken from the environment once.

    Raises:
        StepError: this boundary has none.
    """
    global _way
    if _way is None:
        descriptor = os.environ.pop(VARIABLE, "")
        if not descriptor.isdigit():
            raise StepError("this boundary has no egress channel, so nothing can be reached")
        _way = Way(int(descriptor))
    return _way


def scope_here() -> int:
    """The number of the scope in which the calling code stands."""
    scope = current.get()
    return ANY if scope is None else scope.id
