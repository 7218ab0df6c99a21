"""Keeps the worker's memory and descriptors from the programs that the author's code starts.

They run under the worker's uid, so without this they could take the channel, and with it the run's identity, by
``pidfd_getfd(2)``, ``ptrace(2)`` or ``/proc/PID/mem``. ``prctl(2)``, PR_SET_DUMPABLE.
"""

from __future__ import annotations

import os

MARKER = "HOLDFAST_BOUNDARY"
"""Set where no namespace holds the boundary's processes: there the node finds what was left behind by reading this very
variable of each process, which an ordinary user's node may not do with private ones."""
_PR_SET_DUMPABLE = 4


def become_private() -> None:
    """Let no other process without privileges read or trace this one, nor those forked from it.

    Raises:
        OSError: the kernel refused.
    """
    if MARKER in os.environ:
        return
    try:
        # What ``ctypes`` is made of: the whole of it would cost every start several milliseconds.
        import _ctypes
    except ImportError:
        raise OSError("this Python was built without ctypes, which keeping the worker private needs") from None
    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
    if _ctypes.call_function(prctl, (_PR_SET_DUMPABLE, 0, 0, 0, 0)) != 0:
        raise OSError("the kernel refuses to keep this process from others (PR_SET_DUMPABLE)")
