"""Start a worker in its boundary: what it sees, what it may use, and the two channels that are its identity.

A node that serves keeps workers ready ahead of the runs of agents that it has seen (:mod:`holdfast.sandbox.pool`).
Until a run claims one, its broker takes ``ready`` and nothing else, and nobody answers its egress.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from pathlib import Path

import msgspec

from holdfast import wire
from holdfast.agent.egress import VARIABLE
from holdfast.errors import IsolationError, ProtocolError
from holdfast.journal.base import Header
from holdfast.sandbox.base import Boundary, Channel, Label, Level, Limits, Mount, Spec
from holdfast.sandbox.interpreter import interpreter_mounts, worker_argv
from holdfast.sandbox.levels import IN_PLACE
from holdfast.sandbox.pool import Key, Pool, Warm

CODE = Path("/code")
"""Where a deployment's files stand inside."""
IMPORT_SECONDS = 20.0
"""How long a worker that is started ahead may take until its code is imported; a run's own may take longer."""
_READ = 1 << 16


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A run's worker, and the node's ends of its channels."""

    boundary: Boundary
    broker: socket.socket
    way: socket.socket
    """The egress's."""
    ready: wire.Ready | None = None
    """What it said already when it was started ahead; None: it has said nothing yet."""


class Launcher:
    """Starts the workers of a node's runs. ``pool`` None: each when its run begins, and not before."""

    def __init__(self, home: Path, limits: Limits, pool: Pool | None = None) -> None:
        self._home = home
        self._limits = limits
        self.pool = pool

    async def launch(self, level: Level, header: Header, folder: Path, target: str, *, fresh: bool) -> Launched:
        """A worker for a run, ready ahead or started now. ``fresh``: more runs of this deployment are to be expected.

        Raises:
            IsolationError: the level cannot be had here.
        """
        if (warm := self._take(level, header, folder, target, fresh)) is not None:
            broker, way = warm.channels
            assert isinstance(warm.word, wire.Ready)
            return Launched(boundary=warm.boundary, broker=broker, way=way, ready=warm.word)
        env = {**_ENVIRONMENT, "HOLDFAST_RUN_ID": header.stream}
        return await self._start(level, _label(header), folder, env)

    def boundaries(self) -> list[Boundary]:
        """Those that no run has yet."""
        return [] if self.pool is None else self.pool.boundaries()

    async def close(self) -> None:
        """End what no run has."""
        if self.pool is not None:
            await self.pool.close()

    def _take(self, level: Level, header: Header, folder: Path, target: str, fresh: bool) -> Warm | None:
        if self.pool is None:
            return None
        key = Key(tenant=header.tenant, agent=header.agent, level=level.name, deployment=header.deployment)
        while (warm := self.pool.take(key)) is not None:
            with contextlib.suppress(IsolationError):
                warm.boundary.claim(_label(header))
                break
            self.pool.discard(warm)
        if fresh:
            self.pool.want(key, partial(self._ahead, level, key, folder, target))
        return warm

    async def _ahead(self, level: Level, key: Key, folder: Path, target: str) -> Warm:
        """Start a worker that has no run, and wait until it has its code."""
        label = Label(tenant=key.tenant, agent=key.agent)
        started = await self._start(level, label, folder, _ENVIRONMENT, ("--ahead", root_inside(level, folder), target))
        channels = started.broker, started.way
        try:
            for channel in channels:
                channel.setblocking(False)
            async with asyncio.timeout(IMPORT_SECONDS):
                word = await _ready(started.broker)
            return Warm(started.boundary, channels, word)
        except BaseException as error:
            for channel in channels:
                channel.close()
            await started.boundary.close()
            if isinstance(error, TimeoutError):
                raise IsolationError(f"its code was not imported within {IMPORT_SECONDS:g} s") from None
            if isinstance(error, ProtocolError):
                raise IsolationError(str(error)) from None
            raise

    async def _start(
        self, level: Level, label: Label, folder: Path, env: dict[str, str], arguments: tuple[str, ...] = ()
    ) -> Launched:
        broker, broker_inner = socket.socketpair()
        way, way_inner = socket.socketpair()
        spec = Spec(
            argv=(*worker_argv("holdfast.agent.worker"), *arguments),
            label=label,
            home=self._home,
            mounts=(*interpreter_mounts(), Mount(source=folder, target=CODE)),
            env=env,
            channels=(
                Channel(variable="HOLDFAST_CHANNEL", inner=broker_inner),
                Channel(variable=VARIABLE, inner=way_inner),
            ),
            limits=self._limits,
        )
        try:
            return Launched(boundary=await level.start(spec), broker=broker, way=way)
        except BaseException:
            broker.close()
            way.close()
            raise
        finally:
            broker_inner.close()
            way_inner.close()


def root_inside(level: Level, folder: Path) -> str:
    """Where the worker finds the code: some levels have no view of their own."""
    return str(folder) if level.name in IN_PLACE else str(CODE)


async def _ready(broker: socket.socket) -> wire.Ready:
    """The first and only word of a worker without a run.

    Raises:
        ProtocolError: it said something else, or ended.
    """
    deframer = wire.Deframer()
    while True:
        data = await asyncio.get_running_loop().sock_recv(broker, _READ)
        if not data:
            raise ProtocolError("it ended while its code was imported")
        deframer.feed(data)
        said = [wire.decode(wire.worker_decoder, body) for body in deframer]
        if not said:
            continue
        [word, *more] = said
        if not isinstance(word, wire.Ready) or word.version != wire.VERSION or more or deframer.pending:
            raise ProtocolError("it said more than that it is ready")
        return word


def _label(header: Header) -> Label:
    return Label(tenant=header.tenant, agent=header.agent, workflow=header.workflow, run=header.stream)


_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    # The order of a set of strings must be the same in every incarnation, or replay takes another way.
    "PYTHONHASHSEED": "0",
}
