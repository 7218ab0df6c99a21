"""Mount namespaces in which folders below an unreadable home can be reached, so that a dropped uid can mount them.

Only root needs them. A namespace is made once for a set of folders (``unshare --mount``, one bind mount each, onto
a folder that all can reach), is kept open by a descriptor of this process and entered by each start with
``nsenter``: about 3 ms, where making one at each start takes 15. It is a slave of the host's, so later mounts of
the host are seen in it, and nothing of it is seen outside. It ends with the process.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from holdfast.errors import IsolationError
from holdfast.sandbox.uids import HOST

_SCRIPT = """set -e
top=$1; shift
mount -t tmpfs -o mode=0755,nosuid,nodev,size=256k holdfast "$top"
n=0
for source; do
  if [ -d "$source" ]; then mkdir "$top/$n"; else : > "$top/$n"; fi
  mount --rbind "$source" "$top/$n"
  n=$((n+1))
done
echo ready
read -r _ || :
"""
_KEEP = 32
_SECONDS = 30


class Stage:
    """One namespace: :attr:`fd` pins it, :attr:`paths` says where in it a folder is found."""

    def __init__(self, fd: int, paths: dict[str, str]) -> None:
        self.fd = fd
        self.paths = paths
        self.users = 0


class Stages:
    """The namespaces of this process, the latest used ones kept."""

    def __init__(self, top: Path = HOST / "stage") -> None:
        self._top = top
        self._kept: OrderedDict[frozenset[tuple[str, int, int]], Stage] = OrderedDict()
        self._lock = threading.Lock()

    def enter(self, sources: Iterable[str]) -> Stage:
        """A namespace in which all of these can be reached; give it back with :meth:`leave` once it was entered.

        Raises:
            IsolationError: it cannot be made; the message carries what ``mount`` said.
        """
        # A folder that was removed and made anew is another one, though its path is the same.
        key = frozenset((source, (found := os.stat(source)).st_dev, found.st_ino) for source in sources)
        with self._lock:
            stage = self._kept.get(key)
            if stage is None:
                stage = self._kept[key] = _make(self._top, sorted(source for source, _, _ in key))
            self._kept.move_to_end(key)
            stage.users += 1
            for old in list(self._kept)[:-_KEEP]:
                if not self._kept[old].users:
                    os.close(self._kept.pop(old).fd)
            return stage

    def leave(self, stage: Stage) -> None:
        """The namespace was entered, or is not needed any more."""
        with self._lock:
            stage.users -= 1

    def close(self) -> None:
        """Let go of all namespaces."""
        with self._lock:
            while self._kept:
                os.close(self._kept.popitem()[1].fd)


def reachable(path: str) -> bool:
    """Whether everybody may walk to a path, judged by modes alone. The path's own mode is not looked at."""
    above = os.path.dirname(path)
    while above != "/":
        if not os.stat(above).st_mode & 0o001:
            return False
        above = os.path.dirname(above)
    return True


def _make(top: Path, sources: list[str]) -> Stage:
    top.mkdir(mode=0o755, parents=True, exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", _SCRIPT, "sh", str(top), *sources]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != b"ready\n":
            raise IsolationError(f"a folder cannot be prepared for a boundary: {_said(keeper)}")
        fd = os.open(f"/proc/{keeper.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        keeper.communicate(timeout=_SECONDS) if keeper.poll() is None else None
    return Stage(fd, {source: f"{top}/{at}" for at, source in enumerate(sources)})


def _said(process: subprocess.Popen[bytes]) -> str:
    _, stderr = process.communicate(timeout=_SECONDS)
    return stderr.decode(errors="replace").strip() or f"status {process.returncode}"
