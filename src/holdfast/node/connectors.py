"""Connectors: the operator's callables, called by name from the node's side, in a process of their own.

One process for each tenant and settings folder, started with the first call and ended with the node (see
:mod:`holdfast.node.connector_host`). It may crash or hang: that harms the calls in flight in it, whose outcome is then
unknown, and nothing else; the next call starts another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast import values
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError, ProtocolError
from holdfast.node import connector_messages as messages
from holdfast.node.connector_messages import Cancel, Failure, Invoke, Ready, Result, Setup, Stuck

DIAL = 5.0
"""Seconds within which the process begins a call or refuses it: the dial's deadline, which a lease has to outlast."""
MAX_IN_FLIGHT = 64
"""Calls at once in one process. Further ones wait their turn, unsent."""
START = 60.0
"""Seconds in which a process has to have imported its callables."""
GRACE = 1.0
"""Seconds that a process has to give up an overdue call, or to end when it is closed."""

BeforeDial = Callable[[float], None]
ConnectorsOf = Callable[[str], Mapping[str, ConnectorSettings]]

log = logging.getLogger("holdfast.connectors")


class ConnectorPool:
    """The connector processes of a node. Belongs to one event loop, in a thread that lives as long as the node.

    ``connectors_of`` gives a tenant's connectors by name. ``env`` is the processes' environment (the node's own by
    default: connectors may hold credentials), ``output`` the descriptor of what they print. ``dial`` and ``grace`` are
    seconds (see :data:`DIAL` and :data:`GRACE`).
    """

    def __init__(
        self,
        connectors_of: ConnectorsOf,
        *,
        env: Mapping[str, str] | None = None,
        output: int = 2,
        dial: float = DIAL,
        grace: float = GRACE,
    ) -> None:
        self._connectors_of = connectors_of
        self._env = _environment(os.environ if env is None else env)
        self._output = output
        self._dial = dial
        self._grace = grace
        self._processes: dict[tuple[str, str], _Process] = {}
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
    ) -> bytes:
        """Make one attempt of a call; the canonical JSON of what it returned.

        Args:
            tenant: whose connector.
            name: of the connector.
            args: its keyword arguments.
            key: idempotency key, stable over retries; passed on when the callable takes ``idempotency_key``.
            timeout_us: of the attempt; 0: the connector's own.
            before_dial: called right before the call is handed over, with the seconds in which it begins or never does;
                what it raises ends the attempt with nothing sent.

        Raises:
            ConnectorFailure: it failed, or cannot be called.
        """
        connector = self._find(tenant, name)
        return await self._attempt(tenant, name, connector, connector.call, args, b"", key, timeout_us, before_dial)

    async def undo(
        self,
        tenant: str,
        name: str,
        args: dict[str, Any],
        result: bytes,
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
    ) -> bytes:
        """Undo a call of a compensable connector. ``undo`` names a callable or another connector.

        It is called with those of the call's arguments that it takes, with ``result`` and ``args`` (all of them)
        where it takes these, and with the ``key`` of this undoing. ``result`` is the JSON that the call had returned.

        Raises:
            ConnectorFailure: as :meth:`call`.
        """
        connector = self._find(tenant, name)
        if not connector.undo:
            raise ConnectorFailure(f"the connector {name} names no undo", sent=False, retryable=False)
        target = connector.undo
        if ":" not in target:
            connector = self._find(tenant, target)
            target = connector.call
        what = f"{name}'s undo"
        return await self._attempt(tenant, what, connector, target, args, result, key, timeout_us, before_dial)

    def _find(self, tenant: str, name: str) -> ConnectorSettings:
        connector = self.settings(tenant, name)
        if connector is None:
            known = ", ".join(sorted(self._connectors_of(tenant))) or "none"
            raise ConnectorFailure(
                f"the tenant {tenant} has no connector {name}; configured: {known}", sent=False, retryable=False
            )
        if not connector.call:
            raise ConnectorFailure(
                f"the connector {name} is not a Python callable; write call = in holdfast.toml",
                sent=False,
                retryable=False,
            )
        return connector

    async def _attempt(
        self,
        tenant: str,
        what: str,
        connector: ConnectorSettings,
        target: str,
        args: dict[str, Any],
        result: bytes,
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
    ) -> bytes:
        if "idempotency_key" in args:
            raise ConnectorFailure(
                f"{what}: idempotency_key is given by Holdfast; leave it out", sent=False, retryable=False
            )
        try:
            data = values.dump(args, f"the arguments of {what}")
        except PayloadError as error:
            raise ConnectorFailure(str(error), sent=False, retryable=False) from None
        timeout = (timeout_us or connector.timeout) / 1_000_000
        process = await self._process(tenant, str(connector.folder))
        return await process.call(what, target, data, result, key, timeout, before_dial)

    async def _process(self, tenant: str, folder: str) -> _Process:
        place = (tenant, folder)
        process = self._processes.get(place)
        if process is not None and process.usable:
            return process
        async with self._starting.setdefault(place, asyncio.Lock()):
            process = self._processes.get(place)
            if process is None or not process.usable:
                process = _Process(folder, self._targets(tenant, folder), self._dial, self._grace)
                self._processes[place] = process
                try:
                    await process.start(self._env, self._output)
                except BaseException:
                    process.end("its start was given up", retryable=True)
                    if self._processes.get(place) is process:
                        del self._processes[place]
                    raise
            return process

    def _targets(self, tenant: str, folder: str) -> tuple[str, ...]:
        found = {}
        for connector in self._connectors_of(tenant).values():
            if str(connector.folder) == folder:
                found[connector.call] = connector.call
                if ":" in connector.undo:
                    found[connector.undo] = connector.undo
        return tuple(target for target in found if target)

    def pids(self, tenant: str | None = None) -> tuple[int, ...]:
        """The processes of a tenant, or of all."""
        return tuple(process.pid for process in self._of(tenant) if process.usable)

    def kill(self, tenant: str | None = None) -> None:
        """End the processes of a tenant, or all, now. Calls in flight fail as sent and are not to be tried again."""
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

    def _of(self, tenant: str | None) -> list[_Process]:
        return [process for place, process in self._processes.items() if tenant in (None, place[0])]
