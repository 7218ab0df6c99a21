"""Why the namespace level cannot be had here, and the exact cure: missing tools, closed namespaces, container
limits."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox.base import Availability, Label, Limits, Reason, Spec

if TYPE_CHECKING:
    from holdfast.sandbox.base import Level

PROBE_SECONDS = 30.0
"""How long ``/bin/true`` may take to end, after a start that has its own limit."""
MINIMUM = (0, 8)
"""First version of bubblewrap with ``--disable-userns`` and ``--size``."""
_INSTALL = "apt install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora, RHEL), apk add bubblewrap (Alpine)"
_APPARMOR = """this Ubuntu restricts user namespaces to programs with an AppArmor profile.
As root, write to /etc/apparmor.d/bwrap:
  abi <abi/4.0>,
  include <tunables/global>
  profile bwrap /usr/bin/bwrap flags=(unconfined) {
    userns,
    include if exists <local/bwrap>
  }
then run: apparmor_parser -r /etc/apparmor.d/bwrap"""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """Programs that a start runs, by full path."""

    bwrap: str
    setpriv: str
    nsenter: str
    path: str


class Weaker(Exception):
    """The full form is withheld here, a weaker one may be had: ``what`` is ``proc``, ``userns`` or ``mounts``."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(said)
        self.what = what
        self.said = said


@functools.cache
def tools() -> Tools:
    """The programs that a start needs.

    Raises:
        IsolationError: one is missing or too old; says how to install it.
    """
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    found = {name: shutil.which(name, path=path) for name in ("bwrap", "setpriv", "nsenter", "unshare")}
    bubblewrap = found["bwrap"]
    if bubblewrap is None:
        raise IsolationError(f"isolation level namespace needs bubblewrap, which is not installed: {_INSTALL}")
    missing = [name for name in ("setpriv", "nsenter", "unshare") if found[name] is None]
    if missing and os.geteuid() == 0:
        raise IsolationError(
            f"as root, isolation level namespace needs {' and '.join(missing)}: apt install util-linux"
        )
    said = subprocess.run([bubblewrap, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    version = tuple(int(part) for part in said.split()[-1].split(".")[:2] if part.isdigit()) if said.split() else ()
    if version < MINIMUM:
        raise IsolationError(
            f"bubblewrap {'.'.join(map(str, MINIMUM))} or newer is needed, {bubblewrap} is {said.strip() or 'broken'}; "
            "install a newer one (Debian 12, Ubuntu 24.04 and Fedora have it)"
        )
    return Tools(
        bwrap=bubblewrap,
        setpriv=found["setpriv"] or "",
        nsenter=found["nsenter"] or "",
        path="/usr/sbin:/usr/bin:/sbin:/bin",
    )


def failure(said: str) -> Exception:
    """The error for what the launching programs said before they ended."""
    low = said.lower()
    if "mount proc" in low:
        return Weaker("proc", said)
    if "max_user_namespaces" in low:
        return Weaker("userns", said)
    return IsolationError(explain(said))


def explain(said: str, sysctl: Path = Path("/proc/sys")) -> str:
    """One sentence with the cause, and the cure."""
    low = said.lower()
    denied = any(word in low for word in ("no permissions to create", "uid map", "creating new namespace", "unshare"))
    if denied or "operation not permitted" in low or "no space left" in low:
        if _value(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == "1":
            return f"bubblewrap may not make a user namespace: {_APPARMOR}"
        if _value(sysctl / "kernel/unprivileged_userns_clone") == "0":
            return "user namespaces are closed here; as root: sysctl -w kernel.unprivileged_userns_clone=1"
        if _value(sysctl / "user/max_user_namespaces") == "0":
            return "user namespaces are closed here; as root: sysctl -w user.max_user_namespaces=15000"
    if denied:
        return (
            f"bubblewrap may not make namespaces here ({said}). In a container, allow them: docker run --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined, or give each run a pod with a gVisor or Kata "
            "runtime class"
        )
    return f"bubblewrap did not start the program: {said or 'it said nothing'}; run: holdfast sandbox probe"


async def probe(level: Level) -> Availability:
    """Boot ``/bin/true`` at this level."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-probe-") as folder:
        spec = Spec(argv=("/bin/true",), label=Label(tenant="probe"), home=Path(folder), limits=Limits(disk=1 << 20))
        try:
            boundary = await level.start(spec)
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    ended = await boundary.wait()
            except TimeoutError:
                raise IsolationError(
                    f"/bin/true did not end inside within {PROBE_SECONDS:.0f} s; is the machine overloaded?"
                ) from None
            finally:
                await boundary.close()
        except IsolationError as error:
            said = str(error)
            cause, _, cure = said.rpartition("; ") if "; " in said else said.partition(": ")
            return Availability(
                level=level.name, available=False, reason=cause, cure=cure, seconds=time.monotonic() - started
            )
    fine = ended.reason is Reason.EXITED and ended.status == 0
    return Availability(
        level=level.name,
        available=fine,
        reason="" if fine else f"/bin/true ended inside as {ended.reason} with status {ended.status}",
        seconds=time.monotonic() - started,
    )


def _value(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
