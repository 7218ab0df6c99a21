"""The conditional transaction: decides each append of a batch in order, and gathers what is to be written.

Pure apart from the rows that it is handed and the salt of payloads: both stores run this same code, under their own
locks, and write what it gathered. An append is checked as a whole before anything of it is taken over, so a refused one
leaves no trace; one that follows in the batch sees what those before it did.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec

from holdfast.action import Kill, Refusal
from holdfast.journal.base import (
    FLEET,
    Append,
    Appended,
    Draft,
    Header,
    InboxItem,
    LedgerRow,
    Refused,
    Result,
    SecretWrite,
    StreamKind,
    Tenant,
)
from holdfast.journal.event import VERSION, Event, encode
from holdfast.journal.frontier import push
from holdfast.journal.ledger import apply
from holdfast.journal.payloads import TenantKey, secret_context
from holdfast.journal.rows import FINAL, Rows, StreamRow, TenantRow
from holdfast.values import MAX_VALUE

MAX_EVENT = 1 << 20
"""Bytes of one event, at most."""
MAX_PAYLOAD = MAX_VALUE
"""Bytes of one payload, at most."""
MAX_INBOX = 1 << 20
"""Bytes of one inbox item's data and payload, at most."""

_LEAF = b"\x00"
_json = msgspec.json.Encoder(order="sorted")


def control(tenant: str) -> str:
    """Name of a tenant's control stream."""
    return f"control:{tenant}"


FLEET_CONTROL = control(FLEET)


class Raced(Exception):
    """Another writer changed what this transaction had read before its lock: it must begin again."""


class Transaction:
    """One batch under way. After :meth:`append`, the attributes hold what the store has to write."""

    __slots__ = (
        "consumed",
        "created",
        "delivered",
        "events",
        "generation",
        "inbox",
        "kills",
        "ledger",
        "lifts",
        "memory",
        "moved",
        "new_tenants",
        "now",
        "pasts",
        "payloads",
        "rows",
        "secrets",
        "tenants",
        "touched",
    )

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.now = rows.now()
        self.events: list[tuple[Any, ...]] = []
        self.payloads: list[tuple[str, int, str, str, str, bytes]] = []
        self.created: dict[str, StreamRow] = {}
        self.touched: dict[str, StreamRow] = {}
        """Rows of which only ``seq`` and ``head`` changed."""
        self.moved: dict[str, StreamRow] = {}
        """Rows of which more changed."""
        self.new_tenants: dict[str, TenantRow] = {}
        self.tenants: dict[str, TenantRow] = {}
        self.ledger: dict[str, LedgerRow] = {}
        self.inbox: list[tuple[Any, ...]] = []
        self.delivered: dict[str, int] = {}
        self.consumed: set[int] = set()
        self.memory: dict[tuple[str, str, str], tuple[str, bytes] | None] = {}
        self.pasts: dict[tuple[str, str, str, int], tuple[Any, ...]] = {}
        self.secrets: dict[tuple[str, str], tuple[int, str, bytes, str, int] | None] = {}
        self.kills: dict[str, Kill] = {}
        self.lifts: list[str] = []
        self.generation: int | None = None
        """The new kill generation; None when no kill came."""

    def create_tenant(self, tenant: Tenant) -> bool:
        """Add a tenant with its control stream; False when it is there."""
        if self._tenant(tenant.name) is not None:
            return False
        self.new_tenants[tenant.name] = TenantRow(tenant.name, tenant.region, tenant.created_at)
        header = Header(
            stream=control(tenant.name),
            tenant=tenant.name,
            region=tenant.region,
            kind=StreamKind.CONTROL,
            created_at=tenant.created_at,
        )
        self.created[header.stream] = StreamRow(header, "open")
        return True

    def append(self, item: Append) -> Result:
        """Take one append over, or say why not."""
        found = self._find(item)
        if type(found) is Refused:
            return found
        row: StreamRow = found  # type: ignore[assignment]
        if item.epoch != row.epoch or (row.epoch and item.node != row.owner):
            return Refused(
                reason="epoch",
                message=f"{item.stream} is in epoch {row.epoch} and driven by {row.owner or 'nobody'}, "
                f"not by {item.node} in epoch {item.epoch}",
            )
        if item.kill_generation is not None and item.kill_generation != (now := self._generation()):
            return Refused(
                reason="kill",
                message=f"a kill or lift came since: generation {now}, not {item.kill_generation}",
                kill_generation=now,
            )
        if (item.kills or item.lifts) and row.header.kind is not StreamKind.CONTROL:
            return Refused(reason="invalid", message=f"{item.stream} is no control stream: kills belong into one")
        if item.secrets and (row.header.kind is not StreamKind.CONTROL or not item.drafts):
            return Refused(reason="invalid", message=f"{item.stream}: secrets change with an event of a control stream")
        if item.memory and any("\0" in write.key for write in item.memory):
            return Refused(reason="invalid", message=f"a key of memory in {item.stream} holds the character U+0000")
        if item.consume and (refused := self._consume(item)):
            return refused
        if item.deliver and (refused := self._deliver(item, row)):
            return refused
        rows = self._reserve(item) if item.reserve or item.settle else None
        if type(rows) is Refused:
            return rows
        tenant = self._tenant(row.header.tenant)
        if tenant is None:
            if item.create is None:
                # The stream is there and its tenant was not yet when the rows were read: both are just being made.
                raise Raced(f"{item.stream} came into being meanwhile")
            return Refused(reason="tenant", message=f"there is no tenant {row.header.tenant}")
        written = self._write(item, row, tenant)
        if type(written) is Refused:
            return written
        if rows:
            self.ledger.update(rows)  # type: ignore[arg-type]
        self._take(item, row)
        return written

    def _find(self, item: Append) -> StreamRow | Refused:
        name = item.stream
        row = self._stream(name)
        header = item.create
        if header is None:
            if row is not None:
                return row
            if name != FLEET_CONTROL:
                return Refused(reason="missing", message=f"there is no stream {name}")
            self.create_tenant(Tenant(name=FLEET, region="", created_at=self.now))
            return self.created[FLEET_CONTROL]
        if row is not None:
            return Refused(reason="exists", message=f"the stream {name} exists")
        if header.stream != name:
            return Refused(reason="invalid", message=f"the header is that of {header.stream}, not of {name}")
        if self._tenant(header.tenant) is None:
            return Refused(
                reason="tenant",
                message=f"there is no tenant {header.tenant}; `holdfast tenant create {header.tenant}` makes it",
            )
        ready = None if header.kind is StreamKind.CONTROL else self.now
        return StreamRow(header, "open" if ready is None else "pending", ready_at=ready)

    def _stream(self, name: str) -> StreamRow | None:
        return self.created.get(name) or self.rows.stream(name)

    def _tenant(self, name: str) -> TenantRow | None:
        return self.new_tenants.get(name) or self.rows.tenant(name)

    def _generation(self) -> int:
        return self.rows.generation() if self.generation is None else self.generation

    def _consume(self, item: Append) -> Refused | None:
        waiting = self.rows.waiting(item.stream)
        for number in item.consume:
            if number not in waiting or number in self.consumed:
                return Refused(
                    reason="consumed", message=f"item {number} is not in the inbox of {item.stream}: it was consumed"
                )
        if len(set(item.consume)) != len(item.consume):
            return Refused(reason="consumed", message=f"an item of {item.stream} is consumed twice in one append")
        return None

    def _deliver(self, item: Append, row: StreamRow) -> Refused | None:
        for message in item.deliver:
            target = self._stream(message.stream)
            if target is None:
                return Refused(reason="missing", message=f"there is no stream {message.stream} to deliver to")
            if target.header.tenant != row.header.tenant or message.tenant != row.header.tenant:
                return Refused(reason="tenant", message=f"{message.stream} belongs to another tenant")
            if refused := oversized(message):
                return refused
        return None

    def _reserve(self, item: Append) -> dict[str, LedgerRow] | Refused:
        """Settle first, so that what an outcome frees is there for the next intent; report every refusal."""
        changed: dict[str, LedgerRow] = {}
        refusals: list[Refusal] = []
        for op in (*item.settle, *item.reserve):
            key = op.key
            before = changed.get(key) or self.ledger.get(key) or self.rows.ledger(key)
            after = apply(before, op, self.now)
            if type(after) is LedgerRow:
                changed[key] = after
            else:
                refusals.append(after)  # type: ignore[arg-type]
        if not refusals:
            return changed
        return Refused(
            reason="reservation",
            message="; ".join(
                f"{refusal.policy or refusal.key}: {refusal.used} of {refusal.limit} are taken" for refusal in refusals
            ),
            refusals=tuple(refusals),
        )

    def _write(self, item: Append, row: StreamRow, tenant: TenantRow) -> Appended | Refused:
        name, epoch, node, owner = item.stream, item.epoch, item.node, tenant.name
        seq, head, before = row.seq, row.head, row.tail
        index, frontier = tenant.size, tenant.frontier
        events: list[Event] = []
        lines: list[tuple[Any, ...]] = []
        sealed: list[tuple[str, int, str, str, str, bytes]] = []
        for draft in item.drafts:
            seq += 1
            commitments: dict[str, str] = {}
            if draft.payloads:
                key = self.rows.key(owner)
                for role, payload in draft.payloads.items():
                    if len(payload) > MAX_PAYLOAD:
                        return _too_large(f"the {role} of {draft.kind}", len(payload), MAX_PAYLOAD)
                    commitment, ciphertext = key.seal(payload)
                    commitments[role] = commitment
                    sealed.append((owner, index, role, commitment, key.id, ciphertext))
            event = Event(
                v=VERSION,
                tenant=owner,
                stream=name,
                seq=seq,
                index=index,
                epoch=epoch,
                kind=draft.kind,
                at=draft.at,
                clock_error=draft.clock_error,
                node=node,
                witness=draft.witness,
                principal=draft.principal,
                auth=draft.auth,
                prev=head,
                data=draft.data,
                payloads=commitments,
            )
            try:
                body = encode(event)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                return _unwritable(draft, error)
            if len(body) > MAX_EVENT:
                return _too_large(f"the event {draft.kind}", len(body), MAX_EVENT)
            digest = sha256(_LEAF + body)
            leaf = digest.hexdigest()
            lines.append(
                (
                    owner,
                    index,
                    name,
                    seq,
                    draft.kind,
                    draft.at,
                    draft.clock_error,
                    node,
                    epoch,
                    draft.witness,
                    draft.principal,
                    draft.auth,
                    head,
                    leaf,
                    before,
                    body,
                )
            )
            frontier = push(frontier, digest.digest())
            events.append(event)
            head, before = leaf, index
            index += 1
        self.events += lines
        self.payloads += sealed
        tenant.size, tenant.frontier = index, frontier
        row.head, row.tail = head, before
        if item.patch is not None and item.patch.replay_from_here:
            row.replay_from = row.seq + 1
        row.seq = seq
        self.tenants[owner] = tenant
        return Appended(events=tuple(events))

    def _take(self, item: Append, row: StreamRow) -> None:
        """Everything apart from events and ledger, now that the append is in."""
        name = item.stream
        self.consumed.update(item.consume)
        for message in item.deliver:
            self._into_inbox(message)
        tenant = row.header.tenant
        for write in item.memory:
            place = (tenant, write.agent, write.key)
            if write.value is None:
                self.memory[place] = None
            else:
                key = self.rows.key(tenant)
                self.memory[place] = (key.id, key.encrypt(write.value))
        for held in item.pasts:
            past = held.past
            figures = msgspec.json.encode(past.figures).decode()
            self.pasts[tenant, name, held.step, held.attempt] = (
                past.agent, past.gate, past.name, past.at, past.state, past.ended_at, figures,
            )  # fmt: skip
        for secret in item.secrets:
            self.secrets[tenant, secret.name] = self._sealed(tenant, row, secret)
        if item.kills or item.lifts:
            self.generation = self._generation() + 1
            for kill in item.kills:
                self.kills[kill.id] = kill
            for lifted in item.lifts:
                if self.kills.pop(lifted, None) is None:
                    self.lifts.append(lifted)
        if item.patch is not None:
            self._patch(item, row)
        if item.create is not None:
            self.created[name] = row
        elif name not in self.created:
            if item.patch is not None:
                self.moved[name] = row
                self.touched.pop(name, None)
            elif name not in self.moved:
                self.touched[name] = row

    def _sealed(self, tenant: str, row: StreamRow, secret: SecretWrite) -> tuple[int, str, bytes, str, int] | None:
        if secret.value is None:
            return None
        key = self.rows.key(tenant)
        ciphertext = key.encrypt(secret.value, secret_context(secret.name, row.seq))
        return row.seq, key.id, ciphertext, _json.encode(secret.binding).decode(), self.now

    def _patch(self, item: Append, row: StreamRow) -> None:
        patch = item.patch
        assert patch is not None
        if patch.status is not None:
            row.status, row.asking = patch.status, int(patch.asking)
        if patch.set_ready:
            row.ready_at = patch.ready_at
        if patch.release:
            row.owner = ""
        if row.status in FINAL:
            row.ready_at = None
        elif (patch.set_ready or patch.release) and self._unseen(row, patch.seen):
            # What came in while the owner was letting go would otherwise never wake it.
            row.ready_at = self.now if row.ready_at is None else min(row.ready_at, self.now)

    def _unseen(self, row: StreamRow, seen: int) -> bool:
        name = row.header.stream
        if self.delivered.get(name):
            return True
        return any(number > seen and number not in self.consumed for number in self.rows.waiting(name))

    def _into_inbox(self, message: InboxItem) -> None:
        row = self._stream(message.stream)
        if row is None or row.status in FINAL:
            return
        self.inbox.append(inbox_line(message, self.rows.key(message.tenant) if message.payload else None))
        self.delivered[message.stream] = self.delivered.get(message.stream, 0) + 1
        row.ready_at = self.now if row.ready_at is None else min(row.ready_at, self.now)
        if message.stream not in self.created:
            self.moved[message.stream] = row
            self.touched.pop(message.stream, None)


def oversized(item: InboxItem) -> Refused | None:
    """Why an inbox item cannot be kept: too large, or not JSON."""
    try:
        size = len(_json.encode(item.data)) + len(item.payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return Refused(reason="invalid", message=f"the {item.kind} for {item.stream} is not JSON: {error}")
    return _too_large(f"the {item.kind} for {item.stream}", size, MAX_INBOX) if size > MAX_INBOX else None


def inbox_line(item: InboxItem, key: TenantKey | None) -> tuple[Any, ...]:
    """An inbox item as a row, without its id; its payload is encrypted with ``key``."""
    key_id, ciphertext = ("", b"") if key is None else (key.id, key.encrypt(item.payload))
    data = _json.encode(item.data).decode()
    return (item.tenant, item.stream, item.kind, data, key_id, ciphertext, item.principal, item.auth, item.at)


def _too_large(what: str, size: int, limit: int) -> Refused:
    return Refused(
        reason="size",
        message=f"{what} is {size} bytes; at most {limit} are recorded. Keep large data in ctx.files and pass its name",
    )


def _unwritable(draft: Draft, error: Exception) -> Refused:
    return Refused(reason="invalid", message=f"the event {draft.kind} cannot be written as JSON: {error}")
