"""Connectors: the operator's callables, called by name from the node's side, in a process of their own.

One process for each tenant and settings folder, started with the first call and ended with the node (see
:mod:`holdfast.node.connector_host`). It may crash or hang: that harms the calls in flight in it, whose outcome is then
unknown, and nothing else; the next call starts another process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import values
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError
from holdfast.node.connector_process import GRACE, BeforeDial, ConnectorFailure, ConnectorProcess, Origin

if TYPE_CHECKING:
    from holdfast.node.http_connector import HttpConnectors

__all__ = ["ConnectorFailure", "ConnectorPool"]

DIAL = 5.0
"""Seconds within which the process begins a call or refuses it: the dial's deadline, which a lease has to outlast."""

ConnectorsOf = Callable[[str], Mapping[str, ConnectorSettings]]


class ConnectorPool:
    """The connector processes of a node. Belongs to one event loop, in a thread that lives as long as the node.

    ``connectors_of`` gives a tenant's connectors by name. In the registry of ``home`` any process finds the processes
    to end them; without a home they are not registered. ``env`` is their environment (the node's own by default:
    connectors may hold credentials), ``output`` the descriptor of what they print. ``dial`` and ``grace`` are seconds
    (see :data:`DIAL` and :data:`~holdfast.node.connector_process.GRACE`).
    """

    def __init__(
        self,
        connectors_of: ConnectorsOf,
        *,
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: int = 2,
        dial: float = DIAL,
        grace: float = GRACE,
        http: HttpConnectors | None = None,
    ) -> None:
        self._connectors_of = connectors_of
        self._home = home
        self._env = _environment(os.environ if env is None else env)
        self._output = output
        self._dial = dial
        self._grace = grace
        self._http = http
        self._processes: dict[tuple[str, str], ConnectorProcess] = {}
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}

    def settings(self, tenant: str, name: str) -> ConnectorSettings | None:
        """A tenant's connector; None when it has none of that name."""
        return self._connectors_of(tenant).get(name)

    async def call(
        self,
        tenant: str,
        name: str,
        args: dict[str, Any],
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
        *,
        undoes: bytes = b"",
    ) -> bytes:
        """Make one attempt of a call; the canonical JSON of what it returned.

        Args:
            tenant: whose connector. name: of the connector. args: its keyword arguments. key: idempotency key, stable
            over retries; passed on when the callable takes ``idempotency_key``. timeout_us: of the attempt; 0: the
            connector's own. before_dial: called right before the call is handed over, with the seconds in which it
            begins or never does; what it raises ends the attempt with nothing sent. undoes: JSON that the call had
            returned which this one undoes, and whose arguments ``args`` are. The callable then gets those of them
            that it takes, and ``result`` and ``args`` (all of them) where it takes these.

        Raises:
            ConnectorFailure: it failed, or cannot be called.
        """
        connector = self._find(tenant, name)
        if "idempotency_key" in args:
            raise ConnectorFailure(
                f"{name}: idempotency_key is given by Holdfast; leave it out", sent=False, retryable=False
            )
        try:
            data = values.dump(args, f"the arguments of {name}")
        except PayloadError as error:
            raise ConnectorFailure(str(error), sent=False, retryable=False) from None
        timeout = (timeout_us or connector.timeout) / 1_000_000
        if connector.url and self._http is not None:
            return await self._http.call(tenant, name, connector, args, key, timeout, before_dial, undoes)
        process = await self._process(tenant, str(connector.folder))
        return await process.call(name, connector.call, data, undoes, key, timeout, before_dial)

    def _find(self, tenant: str, name: str) -> ConnectorSettings:
        connector = self.settings(tenant, name)
        if connector is None:
            known = ", ".join(sorted(self._connectors_of(tenant))) or "none"
            raise ConnectorFailure(
                f"the tenant {tenant} has no connector {name}; configured: {known}", sent=False, retryable=False
            )
        if not connector.call and (not connector.url or self._http is None):
            raise ConnectorFailure(
                f"the connector {name} is no Python callable and no URL; write call = or url = in holdfast.toml",
                sent=False,
                retryable=False,
            )
        return connector

    async def _process(self, tenant: str, folder: str) -> ConnectorProcess:
        place = (tenant, folder)
        process = self._processes.get(place)
        if process is not None and process.ready:
            return process
        async with self._starting.setdefault(place, asyncio.Lock()):
            process = self._processes.get(place)
            if process is None or not process.usable:
                targets = [one.call for one in self._connectors_of(tenant).values() if str(one.folder) == folder]
                origin = Origin(tenant=tenant, folder=folder, home=self._home)
                process = ConnectorProcess(origin, filter(None, targets), self._dial, self._grace)
                self._processes[place] = process
                try:
                    await process.start(self._env, self._output)
                except BaseException:
                    process.end("its start was given up", retryable=True)
                    if self._processes.get(place) is process:
                        del self._processes[place]
                    raise
            return process

    def pids(self, tenant: str | None = None) -> tuple[int, ...]:
        """The processes of a tenant, or of all."""
        return tuple(process.pid for process in self._of(tenant) if process.usable)

    def kill(self, tenant: str | None = None) -> None:
        """End the processes of a tenant, or all, now. Calls in flight fail as sent and are not to be tried again.

        Like :meth:`freeze` and :meth:`thaw` this may be called from any thread, whatever the event loop is doing.
        """
        for process in self._of(tenant):
            process.end("it was killed", retryable=False)

    def freeze(self, tenant: str | None = None) -> None:
        """Stop the processes where they stand (SIGSTOP), until :meth:`thaw`. Time-outs go on."""
        for process in self._of(tenant):
            process.signal(signal.SIGSTOP)

    def thaw(self, tenant: str | None = None) -> None:
        """Let frozen processes go on."""
        for process in self._of(tenant):
            process.signal(signal.SIGCONT)

    async def ended(self, tenant: str) -> None:
        """The tenant has no work here any more: its processes end, unless a call is in flight."""
        idle = {place: process for place, process in self._processes.items() if place[0] == tenant and not process.busy}
        for place in idle:
            del self._processes[place]
        await asyncio.gather(*(process.close() for process in idle.values()))

    async def close(self) -> None:
        """End all processes. Calls in flight fail as sent."""
        processes = list(self._processes.values())
        self._processes.clear()
        await asyncio.gather(*(process.close() for process in processes))

    def _of(self, tenant: str | None) -> list[ConnectorProcess]:
        return [process for place, process in list(self._processes.items()) if tenant in (None, place[0])]


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that works in another folder: relative module paths still lead to the same
    place."""
    own = dict(env)
    if paths := own.get("PYTHONPATH"):
        own["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return own
