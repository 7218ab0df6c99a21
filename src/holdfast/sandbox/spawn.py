"""Start a program with descriptors at chosen numbers, which ``subprocess`` cannot do."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

_HIGH = 256
"""Above every number that a program is started with."""


class Child(Protocol):
    """A child process of this one."""

    pid: int

    def poll(self) -> int | None:
        """Exit status or minus the signal; None while it runs."""


class Spawned:
    """A child that :func:`spawn` started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Exit status or minus the signal; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


def spawn(command: list[str], env: dict[str, str], fds: dict[int, int]) -> Spawned:
    """Run a command in a session of its own. ``fds``: number there to descriptor here; nothing else is handed on.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument holds a NUL.
    """
    # Copied out of the way first: a number that is wanted may be in use as another one's source.
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number, fd in fds.items()}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()]
        return Spawned(os.posix_spawn(command[0], command, env, file_actions=actions, setsid=True))
    finally:
        for fd in high.values():
            os.close(fd)
