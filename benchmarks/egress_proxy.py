"""Holdfast's egress engine as a process of its own: ``bare``, or ``governed`` (``durable`` or ``volatile``).

Governed as in a run: an allowlist, every detector on both bodies, usage, an intent that is durable before anything
leaves and an outcome behind it, on SQLite with synchronous=FULL.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from holdfast.action import Action, Ended, Facts
from holdfast.clock import SystemClock
from holdfast.egress.base import Deny, Go, Limits, Outcome, Request
from holdfast.egress.guard import TenantGuard
from holdfast.egress.meter import PriceMeter
from holdfast.egress.outlet import Outlet
from holdfast.egress.proxy import listen_tcp
from holdfast.egress.stream import Sweeper
from holdfast.egress.tls import Authority, UpstreamTls, upstream_context
from holdfast.egress.upstream import Pool
from holdfast.errors import HoldfastError
from holdfast.journal.base import Append, Draft, Header, NodeRow, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.fold import fold
from holdfast.journal.open import open_store
from holdfast.journal.writer import Writer
from holdfast.llm.prices import Prices
from holdfast.node import effects
from holdfast.node.recorder import Recorder
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide, decide_after
from holdfast.policy.model import one
from holdfast.values import dump

RULES: tuple[dict[str, Any], ...] = (
    {"category": "egress_allowlist", "with": {"hosts": ["*"], "methods": ["GET", "POST"]}},
    {"category": "pii_redact", "mode": "shadow"},
    {"category": "secret_scan"},
    {"category": "injection_heuristic", "mode": "shadow"},
)


class BareDoor:
    """Lets everything through and records nothing."""

    async def decide(self, request: Request) -> Go | Deny:
        return Go(ticket=None)

    def rejected(self, deny: Deny) -> None:
        print(deny, file=sys.stderr)

    async def before_dial(self, ticket: Any) -> None:
        return

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        return


class GovernedDoor:
    """What a run's door does for a request, without a run's process."""

    def __init__(self, home: Path, *, durable: bool) -> None:
        self._durable = durable
        self._bundle = Bundle([one({"id": f"p{n}", **rule}) for n, rule in enumerate(RULES)])
        self._clock = SystemClock()
        self._meter = PriceMeter(Prices())
        self._ledger = effects.Ledger()
        if durable:
            self._recorder = self._open(home)

    def _open(self, home: Path) -> Recorder:
        store = open_store("sqlite", home)
        store.create_tenant(
            Tenant(name="default", region="us-east", created_at=1), Draft(kind=Kind.TENANT_CREATED, at=1), "n"
        )
        lease = store.now() + 3_600_000_000
        store.register(NodeRow(node="n", host="h", boot="b", pid=1, pid_start=1, lease_until=lease))
        header = Header(stream="run-1", tenant="default", region="us-east", kind=StreamKind.RUN)
        created = Draft(kind=Kind.RUN_CREATED, at=1, data={"agent": "a"}, payloads={"input": b"{}"})
        store.transact([Append(stream="run-1", epoch=0, node="n", drafts=(created,), create=header)])
        epoch = store.claim("run-1", "n")
        assert epoch is not None
        writer = Writer(store, inline=True).start()
        return Recorder(
            fold(store.events("run-1")), epoch=epoch, node="n", writer=writer, clock=self._clock, on_failure=_fail
        )

    async def decide(self, request: Request) -> Go | Deny:
        head, body = request.head, request.body
        if head.method == "CONNECT":
            return Go(ticket=None)
        sha = effects.sha_of(head, body)
        id_ = self._ledger.next("", 1, sha)
        args = effects.arguments(head, body)
        action = Action(
            kind="http",
            name=f"{head.method} {head.authority}",
            id=id_,
            args=args,
            digest=sha,
            host=head.authority,
            method=head.method,
            path=head.path,
            addresses=await request.resolve(),
        )
        facts = Facts(now=self._clock.now(), agent="a", workflow="run", run="run-1", root="run-1")
        verdict = decide(action, facts, self._bundle)
        if not verdict.allowed:
            return Deny(type="denied", rule=verdict.rule, reason=verdict.reason)
        if self._durable:
            data: dict[str, Any] = {
                "action": msgspec.structs.replace(action, args={}),
                "facts": facts,
                "verdict": verdict,
                "parent": "",
                "place": 0,
                "key": "",
                "undo": "",
            }
            draft = self._recorder.draft(Kind.INTENT, data, {"args": dump(dict(args), "a request")})
            await self._recorder.write(draft, kill_generation=0)
        return Go(ticket=(action, facts), meter=self._meter.begin(head, body))

    def rejected(self, deny: Deny) -> None:
        print(deny, file=sys.stderr)

    async def before_dial(self, ticket: Any) -> None:
        return

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        action, facts = ticket
        verdict = decide_after(action, Ended(value=effects.value_of(outcome.text)), facts, self._bundle)
        if not verdict.allowed:
            raise SystemExit(verdict.reason)
        if self._durable and outcome.head is not None:
            data = {"id": action.id, "status": "ok", "exchange": {"status": outcome.status, "usage": outcome.usage}}
            kept = {"result": effects.keep(outcome.head, outcome.body)}
            self._recorder.note(self._recorder.draft(Kind.OUTCOME, data, kept))
            self._recorder.push()


def _fail(error: HoldfastError) -> None:
    print(error, file=sys.stderr)
    raise SystemExit(1)


async def main() -> None:
    """Serve until killed; prints its port, and its authority's file."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    door = BareDoor() if mode == "bare" else GovernedDoor(folder / "home", durable=mode == "governed")
    authority = Authority()
    cafile = folder / "authority.pem"
    cafile.write_bytes(authority.pem)
    outlet = Outlet(
        door=door,
        guard=TenantGuard(allow_private=["127.0.0.1"], resolve={"localhost": ["127.0.0.1"]}),
        pool=Pool(2048),
        sweeper=Sweeper(),
        limits=Limits(connections=4096),
        authority=authority,
        upstream_tls=UpstreamTls(lambda: upstream_context((sys.argv[3],))),
    )
    listener = await listen_tcp("127.0.0.1", 0, outlet)
    print(listener.port, cafile, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
