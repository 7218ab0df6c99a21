"""From a boundary's mounts to what bubblewrap is told to mount: reachable, readable, nothing secret, nothing too
wide."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import masks
from holdfast.sandbox.base import Mount, Spec
from holdfast.sandbox.bwrap import View, inside
from holdfast.sandbox.stage import Stage, Stages, reachable
from holdfast.sandbox.uids import HOST


def _below_root(names: str) -> frozenset[str]:
    return frozenset(f"/{name}".rstrip("/") or "/" for name in ["", *names.split()])


_TOO_WIDE = _below_root("boot dev etc home media mnt opt proc root run srv sys tmp usr var var/run var/lib")
_TAKEN = _below_root("bin dev etc lib lib64 proc sbin sys tmp usr workspace")
"""Places inside that are made otherwise. Below ``/tmp`` and ``/workspace`` there may be mounts."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a start mounts, and the namespace to mount it from."""

    views: tuple[View, ...]
    hide_files: tuple[str, ...]
    hide_folders: tuple[str, ...]
    empty: str
    stage: Stage | None
    entered: Callable[[], None]
    """To be called once the namespace was entered or is not needed."""


def check_program(spec: Spec) -> None:
    """Refuse what no kernel could run.

    Raises:
        IsolationError: there is no program, or a word of its command or environment holds a NUL.
    """
    if not spec.argv:
        raise IsolationError("a boundary needs a program to run: argv is empty")
    if any("\0" in word for word in (*spec.argv, *spec.env, *spec.env.values())):
        raise IsolationError("the program cannot be started: its command or environment holds a NUL character")


class Preparer:
    """Prepares mounts; keeps what starts have in common. Blocking."""

    def __init__(self) -> None:
        self._stages = Stages()

    def prepare(self, spec: Spec, root: bool, *, staged: bool = True) -> Prepared:
        """Check and prepare a boundary's mounts. ``root``: the mounting uid is not this process's.

        ``staged``: what that uid cannot reach is to be made reachable; a level that mounts as root does without.

        Raises:
            IsolationError: a mount is too wide, missing, or not readable for the boundary's uid.
        """
        mounts = [mount for mount in spec.mounts if not (inside(mount.target) and mount.source == mount.target)]
        empty = _empty(spec.home, root)
        sources = {mount.target: _source(mount, spec.home, root) for mount in mounts}
        hide_files: list[str] = []
        hide_folders: list[str] = []
        for mount in mounts:
            source = sources[mount.target]
            if not mount.mask or not os.path.isdir(source):
                continue
            files, folders = masks.find(Path(source), also=spec.home)
            for found, paths in ((hide_files, files), (hide_folders, folders)):
                found += [str(mount.target / path.relative_to(source)) for path in paths]
        stage = None
        if root and staged and (hidden := sorted({source for source in sources.values() if not reachable(source)})):
            stage = self._stages.enter(hidden)
        where = {} if stage is None else stage.paths
        views = tuple(
            View(
                source=where.get(sources[mount.target], sources[mount.target]),
                target=str(mount.target),
                writable=mount.writable,
            )
            for mount in mounts
        )
        return Prepared(
            views=views,
            hide_files=tuple(hide_files),
            hide_folders=tuple(hide_folders),
            empty=empty,
            stage=stage,
            entered=(lambda: None) if stage is None else (lambda: self._stages.leave(stage)),
        )


def _source(mount: Mount, home: Path, root: bool) -> str:
    """The real path of a mount's source, after checking that it may and can be mounted."""
    target = os.path.normpath(mount.target)
    if (
        not mount.target.is_absolute()
        or target != str(mount.target)
        or target in _TAKEN
        or target.startswith(("/proc/", "/dev/", "/sys/"))
    ):
        raise IsolationError(f"{mount.target} is no place inside that a folder can be mounted at")
    try:
        source = os.path.realpath(mount.source, strict=True)
        mode = os.stat(source).st_mode
    except OSError as error:
        raise IsolationError(f"{mount.source} is to be mounted but cannot be read: {error.strerror}") from None
    if _too_wide(mount, Path(source), Path(os.path.realpath(home))):
        raise IsolationError(
            f"{mount.source} is too wide to mount: it holds what no boundary may see; name a folder in it"
        )
    wanted = 0o005 if os.path.isdir(source) else 0o004
    if root and mode & wanted != wanted:
        raise IsolationError(
            f"{mount.source} is not readable for the boundary's own uid; "
            f"make it readable for others: chmod -R o+rX {mount.source}"
        )
    return source


def _too_wide(mount: Mount, source: Path, home: Path) -> bool:
    person = os.path.expanduser("~")
    if str(source) in _TOO_WIDE or (person != "/" and Path(os.path.realpath(person)).is_relative_to(source)):
        return True
    # Holdfast's home below a folder is hidden there, unless nothing is; itself it is never mounted.
    return source == home or (home.is_relative_to(source) and not mount.mask)


def _empty(home: Path, root: bool) -> str:
    """An empty file that the mounting uid can read."""
    folder = HOST if root else home / "cache"
    path = folder / "empty"
    try:
        if path.stat().st_size == 0:
            return str(path)
    except OSError:
        pass
    folder.mkdir(mode=0o755 if root else 0o700, parents=True, exist_ok=True)
    path.write_bytes(b"")
    path.chmod(0o444)
    return str(path)
