"""What a run needs of its node, as one narrow interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from holdfast.action import Glass
from holdfast.clock import Clock
from holdfast.config import PrincipalSettings
from holdfast.journal.base import Header, Store
from holdfast.llm.router import LLM
from holdfast.node.connectors import ConnectorPool
from holdfast.node.launch import Launcher
from holdfast.policy.bundle import Bundle

if TYPE_CHECKING:
    from holdfast.node.egress import Egress


class Services(Protocol):
    """The node, as a run sees it."""

    clock: Clock
    home: Path
    models: LLM
    connectors: ConnectorPool
    egress: Egress
    launcher: Launcher
    store: Store
    """For reading only."""

    def before_dial(self, deadline: float) -> None:
        """Called right before bytes leave: raises when this node's lease does not outlast ``deadline`` seconds."""

    async def payload(self, tenant: str, commitment: str) -> bytes | None:
        """A recorded payload; None when it was erased."""

    async def until(self, at: int) -> None:
        """Sleep until the clock says ``at``."""

    def author_log(self, header: Header, level: str, text: str) -> None:
        """Show a line of the author's log to whoever follows the run."""

    def nudge(self, stream: str) -> None:
        """A stream became ready: look at it now and not at the next tick."""

    @property
    def crowded(self) -> bool:
        """Whether runs wait for memory: then a process that only waits goes at once."""

    def measured(self, header: Header, peak: int) -> None:
        """The peak memory of one of a run's boundaries, bytes; zero when it could not be measured."""

    def bundle(self, digest: str) -> Bundle:
        """A pinned bundle."""

    def person(self, name: str) -> PrincipalSettings:
        """How a principal, or an agent (``agent:NAME``), stands now."""

    def glasses(self, tenant: str, now: int) -> tuple[Glass, ...]:
        """The tenant's broken glasses that are in force, or whose review is open."""

    async def standing(self, header: Header) -> Bundle | None:
        """The bundle that is in force for new runs of its agent; None where the files cannot be used."""
