"""A tenant's secrets: set, listed and removed in its journal, and read for each request.

Every change is an event of the tenant's control stream, in the same commit as the sealed value; the event holds the
name and the binding, never the value. What is read is read anew for each request, so that a rotation or a removal
counts from the next one on.
"""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.clock import Clock
from holdfast.egress.bindings import Binding, check_name, check_value, of_record, sensitive, shown
from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import Append, Appended, Draft, SecretRow, SecretWrite, Store
from holdfast.journal.event import Event, Kind

WRITER = "command-line"
"""Node name of what no node but a command writes."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A secret, open. Never printed: its representation leaves the value out."""

    name: str
    version: int
    binding: Binding
    value: bytes

    def sensitive(self) -> tuple[str, ...]:
        """What of it must not come back (:func:`holdfast.egress.bindings.sensitive`)."""
        return sensitive(self.binding, self.value)

    def __repr__(self) -> str:
        return f"Held({self.name!r}, version={self.version})"

    def __rich_repr__(self) -> Any:
        yield self.name


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A secret as ``holdfast secrets list`` shows it."""

    name: str
    tenant: str
    version: int
    binding: Binding
    set_at: int
    """Microseconds."""


class Vault:
    """A tenant's secrets. Values are opened once for each version."""

    def __init__(self, store: Store, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self._versions: list[tuple[str, int]] = []
        self._current: tuple[Held, ...] = ()

    def current(self) -> tuple[Held, ...]:
        """The secrets as they stand now: the same object as long as none of them changes.

        Raises:
            StoreError: they cannot be read.
        """
        versions = self._store.secret_versions(self._tenant)
        if versions != self._versions:
            kept = {(held.name, held.version): held for held in self._current}
            rows = self._store.secrets(self._tenant)
            found = [kept.get((row.name, row.version)) or self._read(row) for row in rows]
            self._current = tuple(held for held in found if held is not None)
            self._versions = [(held.name, held.version) for held in self._current]
        return self._current

    def _read(self, row: SecretRow) -> Held | None:
        value = self._store.secret(row)
        if value is None:
            return None
        return Held(name=row.name, version=row.version, binding=of_record(row.binding), value=value)


def set_secret(
    store: Store, clock: Clock, tenant: str, name: str, bound: Binding, value: bytes, *, principal: str, auth: str
) -> tuple[Event, ...]:
    """Set a secret, or rotate it.

    Raises:
        UsageError: the name or value cannot be used, or there is no such tenant.
        StoreError: it is not durable.
    """
    write = SecretWrite(name=check_name(name), value=check_value(bound, value), binding=shown(bound))
    data = {"name": name, "binding": shown(bound)}
    return _change(store, clock, tenant, Kind.SECRET_SET, data, write, principal, auth)


def remove_secret(
    store: Store, clock: Clock, tenant: str, name: str, *, principal: str, auth: str
) -> tuple[Event, ...]:
    """Destroy a secret.

    Raises:
        UsageError: there is none of this name.
        StoreError: that is not durable.
    """
    if not any(row.name == name for row in store.secrets(tenant)):
        raise UsageError(f"tenant {tenant} has no secret {name}; `holdfast secrets list --tenant {tenant}` shows them")
    write = SecretWrite(name=name, value=None)
    return _change(store, clock, tenant, Kind.SECRET_REMOVED, {"name": name}, write, principal, auth)


def list_secrets(store: Store, tenant: str) -> list[Listed]:
    """A tenant's secrets, by name, without values."""
    return [
        Listed(
            name=row.name,
            tenant=tenant,
            version=row.version,
            binding=of_record(row.binding),
            set_at=row.created_at,
        )
        for row in store.secrets(tenant)
    ]


def _change(
    store: Store,
    clock: Clock,
    tenant: str,
    kind: Kind,
    data: dict[str, Any],
    write: SecretWrite,
    principal: str,
    auth: str,
) -> tuple[Event, ...]:
    draft = Draft(kind=kind, data=data, at=clock.now(), clock_error=clock.clock_error(), principal=principal, auth=auth)
    append = Append(stream=f"control:{tenant}", epoch=0, node=WRITER, drafts=(draft,), secrets=(write,))
    result = store.transact([append])[0]
    if isinstance(result, Appended):
        return result.events
    if result.reason == "missing":
        raise UsageError(f"there is no tenant {tenant}; `holdfast tenant list` shows them")
    raise StoreError(f"the secret {write.name} could not be written: {result.message}")
