"""The isolation levels by name. A level that cannot be had is an error, never a silent downgrade."""

from __future__ import annotations

from holdfast.errors import UsageError
from holdfast.sandbox import uids
from holdfast.sandbox.base import Level

NAMES = ("process", "landlock", "namespace", "container", "gvisor", "microvm")
"""Every level, weakest first."""
DEFAULT = "namespace"
AVAILABLE = NAMES
"""Levels that this version has."""
IN_PLACE = ("process", "landlock")
"""Levels without mounts: a mount is where its source is."""


def level(name: str = DEFAULT, *, uid_range: tuple[int, int] | None = None) -> Level:
    """The level of this name. ``uid_range``: first and last uid for boundaries, used when the node is root.

    None leaves the default, :data:`holdfast.sandbox.uids.DEFAULT_RANGE`.

    Raises:
        UsageError: there is no level of this name.
    """
    if name == "namespace":
        from holdfast.sandbox.namespace import NamespaceLevel

        return NamespaceLevel(uid_range or uids.DEFAULT_RANGE)
    if name == "process":
        from holdfast.sandbox.process import ProcessLevel

        return ProcessLevel()
    if name == "landlock":
        from holdfast.sandbox.landlock import LandlockLevel

        return LandlockLevel(uid_range or uids.DEFAULT_RANGE)
    if name in ("container", "gvisor"):
        from holdfast.sandbox.container import ContainerLevel

        return ContainerLevel(name, uid_range or uids.DEFAULT_RANGE)
    if name == "microvm":
        from holdfast.sandbox.microvm import MicrovmLevel

        return MicrovmLevel(uid_range or uids.DEFAULT_RANGE)
    raise UsageError(f"there is no isolation level {name!r}; the levels are {', '.join(NAMES)}")
