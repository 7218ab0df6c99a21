"""This Python, seen from inside: what must be mounted so that it runs there at the very paths that it has here.

That is the virtual environment, the interpreter's own prefix (pyenv and uv keep it elsewhere), and Holdfast's
packages with what the worker imports; of a home around them nothing else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path

from holdfast.sandbox.base import Mount

WORKER_IMPORTS = ("holdfast", "waxell_sdk", "msgspec")
"""Top-level packages that a worker needs."""
_LIBRARIES = ("site-packages", "dist-packages")


@functools.cache
def interpreter_mounts() -> tuple[Mount, ...]:
    """Mounts that make ``sys.executable`` and the worker's imports work inside. Computed once per process."""
    folders: dict[str, str] = {}
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix):
        _want(folders, prefix)
    for step in _links(sys.executable):
        if not _covered(folders, step):
            _want(folders, str(Path(step).parent.parent))
    for name in WORKER_IMPORTS:
        place = _package(name)
        if place is not None and not _covered(folders, place):
            _want(folders, place)
    return tuple(
        Mount(source=Path(source), target=Path(target), mask=False) for target, source in sorted(folders.items())
    )


def worker_argv(module: str) -> tuple[str, ...]:
    """Command that runs a module of Holdfast's with this interpreter, without the working directory on its path."""
    outside = [
        str(Path(place).parent) if Path(place).name not in _LIBRARIES else place
        for place in map(_package, WORKER_IMPORTS)
        if place is not None and not place.startswith((sys.prefix + os.sep, sys.base_prefix + os.sep, "/usr/"))
    ]
    user_site = [path for path in dict.fromkeys(outside) if Path(path).name in _LIBRARIES]
    if not user_site:
        return (sys.executable, "-P", "-s", "-m", module)
    # Packages of the user's own site are found through HOME, which is another one inside.
    start = f"import sys,runpy;sys.path+={user_site!r};runpy.run_module({module!r},run_name='__main__',alter_sys=True)"
    return (sys.executable, "-P", "-c", start)


def _want(folders: dict[str, str], path: str) -> None:
    """Mount a folder at its path and, when a link is on the way, at the path without links too."""
    real = os.path.realpath(path)
    for target in (os.path.abspath(path), real):
        if target != "/" and not _covered(folders, target):
            folders[target] = real


def _covered(folders: dict[str, str], path: str) -> bool:
    """Whether a path is inside already: below ``/usr``, which every boundary has, or below a mount."""
    for top in ("/usr", *folders):
        if path == top or path.startswith(top + os.sep):
            return True
    # /bin and /lib are links into /usr on merged systems, and mounted themselves on others.
    return path.startswith(("/bin/", "/lib/", "/lib64/", "/sbin/"))


def _links(path: str) -> list[str]:
    """A path and every link that it leads through."""
    steps = [os.path.abspath(path)]
    while os.path.islink(steps[-1]) and len(steps) < 40:
        here = steps[-1]
        steps.append(os.path.normpath(os.path.join(os.path.dirname(here), os.readlink(here))))
    return steps


def _package(name: str) -> str | None:
    """Folder that must be there to import a package: its library folder, or its own when its source stands
    elsewhere."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = os.path.abspath(next(iter(spec.submodule_search_locations)))
    above = os.path.dirname(folder)
    return above if os.path.basename(above) in _LIBRARIES else folder
