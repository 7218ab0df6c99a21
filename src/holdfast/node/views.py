"""What a node shows of its runs: plain values that the command line prints and the API will serve."""

from __future__ import annotations

from typing import Any

import msgspec


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and how that was authenticated."""

    name: str
    auth: str
    """``peer-uid:N`` or ``token``."""
    roles: tuple[str, ...] = ()


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What a run waits for."""

    kind: str
    """approval, answer, signal, timer, child or resolve."""
    id: str
    step: str
    expires_at: int | None = None
    """Microseconds since the Unix epoch; None: never."""


class FileView(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a run keeps."""

    name: str
    size: int
    """Bytes."""
    digest: str
    """What the record commits to, hex: the payload, or the encrypted bytes in the store of artefacts."""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it stands."""

    run_id: str
    status: str
    agent: str
    workflow: str
    tenant: str
    created_at: int
    output: Any = None
    error: str = ""
    error_code: str = ""
    """Code of the error's class (:mod:`holdfast.errors`); empty: none, or the author's own exception."""
    rule: str = ""
    """The policy that denied or ended it."""
    isolation: str = ""
    cost_nano: int = 0
    steps: int = 0
    pending: tuple[Pending, ...] = ()
    files: tuple[FileView, ...] = ()


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a list of runs."""

    run_id: str
    status: str
    agent: str
    workflow: str
    tenant: str
    created_at: int


class ApprovalView(msgspec.Struct, frozen=True, kw_only=True):
    """A request for approval, or a question, that is open."""

    id: str
    run_id: str
    step: str
    what: Any
    digest: str
    expires_at: int | None
    quorum: int = 1
    given: int = 0
    kind: str = "approval"
    """approval or answer."""
    approvers: tuple[str, ...] = ()


class KillResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a kill did: ``ended`` local boundaries, the last of them ``ms`` after the commit."""

    id: str
    ended: int
    ms: float


class DrillResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill found: the time from the commit of the kill to the end of the canary's last process."""

    kill_id: str
    run_id: str
    ms: float


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant."""

    name: str
    region: str
    created_at: int
