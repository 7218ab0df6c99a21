"""The policies in force: read from the layers' files, kept while they are good, and brought to runs in flight.

What was read once stays in force while a file is half written or wrong: the change is not taken, which is said. A file
counts as changed only when it looks the same at two looks in a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import GATES, Outcome, Price
from holdfast.audit import keys
from holdfast.audit.redecide import Undecidable, arguments
from holdfast.config import AgentSettings, Settings, TenantSettings
from holdfast.errors import AuditError, HoldfastError, PolicyFileError, TerminatedError
from holdfast.journal.base import Appended, StreamKind, StreamState
from holdfast.journal.event import Kind
from holdfast.journal.fold import recorded_facts
from holdfast.log import Log
from holdfast.node.history import state_of
from holdfast.node.run import Run, Stop
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.layers import Layer, load, shift
from holdfast.policy.signing import Verifier, signer

LIVE = ("pending", "running", "suspended", "in_doubt")
"""Statuses of runs that go on."""
log = Log(__name__)

Print = tuple[tuple[str, int, int, int], ...]
"""How files look: path, inode, size and time of change of each; nothing of a file that is not there."""


def layers(settings: Settings, tenant: str, agent: str, run_files: Sequence[Path] = ()) -> tuple[Layer, ...]:
    """The layers of one agent in one tenant, upper ones first."""
    return (
        Layer(name="organisation", files=settings.policy.files),
        Layer(name="tenant", files=settings.tenants.get(tenant, TenantSettings()).policies),
        Layer(name="agent", files=settings.agents.get(agent, AgentSettings()).policies),
        Layer(name="run", files=tuple(run_files)),
    )


def trusted(settings: Settings) -> list[keys.PublicKey]:
    """The keys that may sign policy files.

    Raises:
        PolicyFileError: one cannot be read.
    """
    try:
        return [keys.load_public(path) for path in settings.policy.trusted_keys]
    except AuditError as error:
        raise PolicyFileError(f"[policy] trusted_keys: {error}") from None


def read(settings: Settings, stack: Sequence[Layer]) -> Bundle:
    """The bundle of some layers, with their signatures checked.

    Raises:
        PolicyFileError: a file is missing, wrong, not signed as it must be, or loosens what it may not.
    """
    policy = settings.policy
    known: Sequence[Verifier] = trusted(settings)
    if policy.require_signed and not known:
        raise PolicyFileError("[policy] require_signed is on and trusted_keys is empty; name the keys that may sign")

    def check(path: Path, data: bytes) -> None:
        signer(path, data, known, required=policy.require_signed)

    return load(stack, check=check if known else None)


def parts(settings: Settings) -> list[tuple[Path, ...]]:
    """The files of each layer that is configured."""
    found = [settings.policy.files]
    found += [tenant.policies for tenant in settings.tenants.values()]
    found += [agent.policies for agent in settings.agents.values()]
    return [files for files in found if files]


def configured(settings: Settings) -> list[Path]:
    """Every policy file that is configured, upper layers first."""
    return list(dict.fromkeys(path for files in parts(settings) for path in files))


def misfits(settings: Settings) -> list[str]:
    """What keeps the layers of some tenant and agent from going together, or is not signed as it must be."""
    found: dict[str, None] = {}
    for tenant in ("default", *settings.tenants):
        for agent in ("", *settings.agents):
            try:
                read(settings, layers(settings, tenant, agent))
            except PolicyFileError as error:
                found.setdefault(str(error))
    return list(found)


class _Kept(msgspec.Struct):
    bundle: Bundle
    print: Print
    seen: Print | None = None
    """Another look of the files, seen once."""
    problem: str = ""


class Bundles:
    """The bundles of one home, by tenant and agent; each is read when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[tuple[str, str], _Kept] = {}

    def of(self, tenant: str, agent: str, run_files: Sequence[Path] = ()) -> Bundle:
        """What is in force for a new run now. Files of the run's own are read each time.

        Raises:
            PolicyFileError: the files are wrong, and there is no earlier bundle that stays in force.
        """
        if run_files:
            return read(self._settings, layers(self._settings, tenant, agent, run_files))
        kept = self._kept.get((tenant, agent))
        if kept is None:
            stack = layers(self._settings, tenant, agent)
            # Looked at before it is read: a change in between is seen at the next look.
            print_ = _print(stack)
            kept = self._kept[tenant, agent] = _Kept(bundle=read(self._settings, stack), print=print_)
        return kept.bundle

    def known(self, tenant: str, agent: str) -> Bundle | None:
        """What is in force, where it was read already."""
        kept = self._kept.get((tenant, agent))
        return kept.bundle if kept is not None else None

    def now(self, tenant: str, agent: str, run_files: Sequence[Path] = ()) -> Bundle:
        """What the files say at this moment; where they are wrong, what they said before, if anything.

        Raises:
            PolicyFileError: the files are wrong, and there is no earlier bundle that stays in force.
        """
        kept = self._kept.get((tenant, agent))
        if run_files or kept is None:
            return self.of(tenant, agent, run_files)
        stack = layers(self._settings, tenant, agent)
        print_ = _print(stack)
        if print_ != kept.print:
            self._take(kept, stack, print_)
        return kept.bundle

    def look(self) -> bool:
        """Look whether files changed, and read those that did; says whether another bundle is in force."""
        changed = False
        for (tenant, agent), kept in list(self._kept.items()):
            stack = layers(self._settings, tenant, agent)
            print_ = _print(stack)
            if print_ == kept.print:
                kept.seen = None
                continue
            if print_ != kept.seen:
                kept.seen = print_
                continue
            before = kept.bundle.digest
            self._take(kept, stack, print_)
            if kept.bundle.digest != before:
                log.info("policies in force", tenant=tenant, agent=agent, bundle=kept.bundle.digest)
                changed = True
        return changed

    def _take(self, kept: _Kept, stack: Sequence[Layer], print_: Print) -> None:
        """Read files that changed; what is wrong changes nothing and is said, once for each change."""
        kept.print, kept.seen = print_, None
        try:
            kept.bundle, kept.problem = read(self._settings, stack), ""
        except HoldfastError as error:
            kept.problem = str(error)
            log.error("the policies stay as they were: a file cannot be used", reason=kept.problem)

    @property
    def problems(self) -> list[str]:
        """Why files that changed are not in force."""
        return sorted({kept.problem for kept in self._kept.values() if kept.problem})


def _print(stack: Sequence[Layer]) -> Print:
    found = []
    for path in (path for layer in stack for path in layer.files):
        for one in (path, path.with_name(path.name + ".sig")):
            try:
                stat = os.stat(one)
            except OSError:
                continue
            found.append((str(one), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


async def keep_up(run: Run, failed: Callable[[HoldfastError], None]) -> None:
    """As :func:`catch_up`, for a run that is under way."""
    try:
        await catch_up(run)
    except Stop as stop:
        run.end(stop)
    except HoldfastError as error:
        failed(error)


async def catch_up(run: Run) -> None:
    """Let a run go on under what policies in force now change for it: recorded first, then in force for each decision.

    Raises:
        Stop: a rule that is in force at once ends the run.
        Fenced, StoreError: it cannot be recorded.
    """
    standing = await run.services.standing(run.header)
    change = shift(run.bundle, standing) if standing is not None and not run.stop.done() else None
    if change is None:
        return
    run.services.store.put_blobs({change.bundle.digest: change.bundle.to_bytes()})
    data = {"bundle": change.bundle.digest, "was": run.bundle.digest, "rules": list(change.changed)}
    written = await run.recorder.write(run.recorder.draft(Kind.BUNDLE_PINNED, data))
    if isinstance(written, Appended):
        run.go_by(change.bundle)
        if change.immediate:
            await _again(run)


async def _again(run: Run) -> None:
    """Decide what is under way or waits once more; the first that is refused ends the run."""
    prices: dict[str, Price | None] = {}
    for event in run.services.store.events(run.state.run):
        facts = recorded_facts(event)
        if facts is not None:
            prices[event.data["action"]["id"]] = facts.price
    for record in [one for one in run.state.records.values() if one.state in ("open", "waiting")]:
        if record.action.gate not in GATES:
            continue  # a wait for a timer, a signal or a child reaches nothing
        payload = await run.services.payload(run.state.tenant, record.args) if record.args else b""
        args = _arguments(record.action.kind, payload) if payload else {}
        action = msgspec.structs.replace(record.action, args=args)
        verdict = decide(action, run.facts({}, record, prices.get(record.id), action), run.bundle)
        if verdict.outcome >= Outcome.DENY:
            ends = verdict.outcome is Outcome.TERMINATE
            kind, code = (Kind.RUN_TERMINATED, TerminatedError.code) if ends else (Kind.RUN_DENIED, "denied")
            raise Stop(kind, code=code, message=f"{record.id}: {verdict.reason}", rule=verdict.rule)


def _arguments(kind: str, payload: bytes) -> Mapping[str, Any]:
    try:
        return arguments(kind, payload)
    except Undecidable:
        return {}


class Affected(msgspec.Struct, frozen=True, kw_only=True):
    """A live run, and what policies would change for it."""

    run: str
    tenant: str
    agent: str
    status: str
    pinned: str
    """Digest of the bundle that it is pinned to."""
    effect: str
    """none (nothing differs), pinned (it goes on as it is), next-step or immediate."""
    rules: tuple[str, ...] = ()


def affected(store: Any, bundles: Bundles) -> list[Affected]:
    """Every live run with what the policies in force change for it, newest first.

    Raises:
        PolicyFileError: files are wrong.
    """
    found = []
    live = [one for status in LIVE for one in store.streams(kind=StreamKind.RUN, status=status)]
    for stream in sorted(live, key=lambda one: (one.header.created_at, one.header.stream), reverse=True):
        header = stream.header
        pinned = pinned_to(store, stream)
        standing = bundles.of(header.tenant, header.agent)
        change = shift(Bundle.from_bytes(store.blob(pinned)), standing) if store.blob(pinned) is not None else None
        effect = "none" if pinned == standing.digest else "pinned"
        if change is not None:
            effect = "immediate" if change.immediate else "next-step"
        found.append(
            Affected(
                run=header.stream,
                tenant=header.tenant,
                agent=header.agent,
                status=stream.status,
                pinned=pinned,
                effect=effect,
                rules=change.changed if change is not None else (),
            )
        )
    return found


def urgent(opened: Callable[[], Any], bundles: Bundles) -> list[StreamState]:
    """Runs that wait and must hear of other policies at once. Works on a store of its own, and may take its time."""
    store = opened()
    try:
        names = [one.run for one in affected(store, bundles) if one.effect == "immediate"]
        return [state for name in names if (state := store.stream(name)) is not None]
    except HoldfastError as error:
        log.error("runs that wait did not hear of other policies", reason=str(error))
        return []
    finally:
        store.close()


def pinned_to(store: Any, stream: StreamState) -> str:
    """Digest of the bundle that a run goes by now."""
    return str(state_of(store, stream).created["bundle"])
