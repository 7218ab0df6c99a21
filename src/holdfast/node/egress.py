"""The node's way out for its runs: a proxy connection for each that the inside asks for, guarded by tenant.

What carries requests is imported with the first connection: most runs reach nothing.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING

from holdfast.agent.egress import GIVEN, REFUSED
from holdfast.clock import Clock
from holdfast.config import EgressSettings, Settings
from holdfast.errors import HoldfastError
from holdfast.journal.base import Store
from holdfast.llm.router import LLM
from holdfast.log import Log
from holdfast.node.effects import Ledger
from holdfast.node.incarnation import Incarnation

if TYPE_CHECKING:
    from holdfast.egress.base import Door
    from holdfast.egress.credentials import Credentials
    from holdfast.egress.guard import TenantGuard
    from holdfast.egress.meter import PriceMeter
    from holdfast.egress.outlet import Outlet
    from holdfast.egress.stream import Sweeper
    from holdfast.egress.tls import Authority
    from holdfast.egress.upstream import Pool

MAX_CONNECTIONS = 256
"""Connections that one boundary may have to the proxy at once."""
OWN_LOOPBACK = frozenset({"namespace", "container", "gvisor"})
"""Levels whose boundaries have a loopback of their own, on which a relay can listen for any program inside."""
log = Log(__name__)


class Tenant:
    """What the runs of one tenant share, and no other tenant: secrets, names looked up, and idle connections."""

    def __init__(self, name: str, settings: EgressSettings, store: Store, clock: Clock) -> None:
        from holdfast.egress.guard import TenantGuard
        from holdfast.egress.oauth import Tokens
        from holdfast.egress.tls import UpstreamTls, upstream_context
        from holdfast.egress.upstream import Pool
        from holdfast.egress.vault import Vault

        self.settings = settings
        self._clock = clock
        resolve = {name: [address] for name, _, address in (entry.partition("=") for entry in settings.resolve)}
        self.guard: TenantGuard = TenantGuard(allow_private=settings.allow_private, resolve=resolve)
        self.pool: Pool = Pool()
        self.tls = UpstreamTls(functools.partial(upstream_context, tuple(map(str, settings.roots))))
        """How this tenant's upstreams are verified."""
        self._vault = Vault(store, name)
        self._tokens = Tokens(self.guard)
        self._credentials: dict[str, Credentials] = {}

    def credentials(self, agent: str) -> Credentials:
        """What adds an agent's credentials, and takes them out of what comes back."""
        found = self._credentials.get(agent)
        if found is None:
            from holdfast.egress.credentials import Credentials

            found = self._credentials[agent] = Credentials(self._vault, agent, self._tokens, self._clock)
        return found


class Egress:
    """The egress of one node. Belongs to one event loop."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, models: LLM) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._models = models
        self._meter: PriceMeter | None = None
        self._tenants: dict[str, Tenant] = {}
        self._sweeper: Sweeper | None = None

    def open(self, inc: Incarnation, outer: socket.socket) -> Way:
        """Serve the egress channel of a run's process until :meth:`Way.close`."""
        return Way(self, inc, outer)

    def operators(self, name: str, door: Door) -> Outlet:
        """A way out for something that the operator named: private places are the operator's to name."""
        from holdfast.egress.guard import OperatorGuard
        from holdfast.egress.outlet import Outlet
        from holdfast.egress.upstream import Pool

        tenant = self.tenant(name)
        return Outlet(
            door=door,
            guard=OperatorGuard(tenant.guard),
            pool=Pool(),
            sweeper=self.sweeper,
            outfitter=tenant.credentials(""),
            upstream_tls=tenant.tls,
        )

    def tenant(self, name: str) -> Tenant:
        """A tenant's share.

        Raises:
            ConfigError: its settings cannot be used.
        """
        found = self._tenants.get(name)
        if found is None:
            settings = self._settings.egress_of(name)
            found = self._tenants[name] = Tenant(name, settings, self._store, self._clock)
        return found

    @property
    def meter(self) -> PriceMeter:
        """Knows which requests are calls of a model, and what they cost."""
        if self._meter is None:
            from holdfast.egress.meter import PriceMeter

            self._meter = PriceMeter(self._models.price_table)
        return self._meter

    @property
    def sweeper(self) -> Sweeper:
        """What ends waits that last too long."""
        if self._sweeper is None:
            from holdfast.egress.stream import Sweeper

            self._sweeper = Sweeper()
        return self._sweeper


class Way:
    """The node's end of one egress channel."""

    def __init__(self, egress: Egress, inc: Incarnation, outer: socket.socket) -> None:
        self._egress = egress
        self._inc = inc
        self._outer = outer
        self._ledger = Ledger()
        self._outlets: list[Outlet] = []
        self._joining: set[asyncio.Task[None]] = set()
        self._asked = bytearray()
        self._authority: Authority | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False
        outer.setblocking(False)
        self._loop.add_reader(outer.fileno(), self._read)

    def settings(self, level: str) -> dict[str, str]:
        """What the worker is told: whether to relay, and the certificate authority to trust."""
        if level not in OWN_LOOPBACK:
            return {}
        if not self._listed():
            return {"relay": "1"}
        from holdfast.egress.tls import Authority

        self._authority = Authority(self._inc.run.header.stream)
        return {"relay": "1", "authority": self._authority.pem.decode()}

    def _listed(self) -> bool:
        """Whether anything may be reachable at all: only then an authority is worth making."""
        return any(rule.category.name == "egress_allowlist" for rule in self._inc.run.bundle.rules)

    def _read(self) -> None:
        try:
            data = self._outer.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._asked += data
        while len(self._asked) >= 4 and not self._closed:
            scope = int.from_bytes(self._asked[:4], "big")
            del self._asked[:4]
            self._give(scope)

    def _give(self, scope: int) -> None:
        self._outlets = [outlet for outlet in self._outlets if outlet.clients]
        try:
            if len(self._outlets) + len(self._joining) >= MAX_CONNECTIONS:
                self._outer.send(REFUSED)
                return
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._outer, [GIVEN], [theirs.fileno()])
        except OSError:
            # It asks and does not take: a worker that does not read harms its own way out only.
            self.close()
            return
        ours.setblocking(False)
        task = self._loop.create_task(self._join(ours, scope))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, ours: socket.socket, scope: int) -> None:
        from holdfast.egress.proxy import Client

        try:
            outlet = self._outlet(scope)
        except HoldfastError as error:
            log.error("no way out for a run", run=self._inc.run.state.run, reason=str(error))
            ours.close()
            return
        except Exception:
            log.exception("no way out for a run", run=self._inc.run.state.run)
            ours.close()
            return
        self._outlets.append(outlet)
        await self._loop.connect_accepted_socket(lambda: Client(outlet), ours)

    def _outlet(self, scope: int) -> Outlet:
        from holdfast.egress.outlet import Outlet
        from holdfast.node.door import RunDoor

        header = self._inc.run.header
        tenant = self._egress.tenant(header.tenant)
        credentials = tenant.credentials(header.agent)
        door = RunDoor(self._inc, self._ledger, scope, tenant.settings, credentials.named, self._egress.meter)
        return Outlet(
            door=door,
            guard=tenant.guard,
            pool=tenant.pool,
            outfitter=credentials,
            sweeper=self._egress.sweeper,
            authority=self._authority,
            upstream_tls=tenant.tls,
        )

    def close(self) -> None:
        """End every connection at once."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._outer.fileno())
        self._outer.close()
        for outlet in self._outlets:
            outlet.stop()
