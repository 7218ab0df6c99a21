"""For whom a run acts, and with what right: said when it is started, recorded with its first event, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Mandate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a door has found out about who starts a run. Fields as in :class:`holdfast.action.Facts`."""

    roles: tuple[str, ...] = ()
    tags: Mapping[str, str] = {}
    identity: str = ""
    claims: Mapping[str, Any] = {}
    on_behalf_of: str = ""
    authority: tuple[str, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """The fields by name."""
        return msgspec.structs.asdict(self)

    def passed_on(self, authority: tuple[str, ...] | None) -> Mandate:
        """What a child acts with: the same, and at most the authority that its parent gives it."""
        return self if authority is None else msgspec.structs.replace(self, authority=authority)


def mandate(created: Mapping[str, Any]) -> Mandate:
    """The mandate of a run whose first event holds ``created``."""
    said = created.get("mandate", {})
    return said if isinstance(said, Mandate) else msgspec.convert(said, Mandate)
