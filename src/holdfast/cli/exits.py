"""The exit status of a run, by how it stands."""

from __future__ import annotations

from holdfast import errors
from holdfast.node.views import RunView

OK = 0
FAILED = 1
USAGE = 2
SUSPENDED = 3
DENIED = 4
TERMINATED = 5
KILLED = 6
IN_DOUBT = 7
ISOLATION = 8
AUDIT = 9
STORE = 10
INTERRUPTED = 130

MEANING = {
    OK: "completed",
    FAILED: "failed",
    USAGE: "usage, whatever is refused before a run exists, and runs refused because too many wait",
    SUSPENDED: "suspended: the run waits for a person, a signal, a child or a timer of 60 s or more",
    DENIED: "denied by a policy",
    TERMINATED: "terminated by a policy (a budget, say)",
    KILLED: "killed, or refused by a standing kill",
    IN_DOUBT: "in doubt: an irreversible effect was sent and not answered",
    ISOLATION: "the isolation level is not to be had",
    AUDIT: "the record does not verify",
    STORE: "disk, lock or database unusable",
    INTERRUPTED: "interrupted from the keyboard; the run can be resumed",
}

_BY_STATUS = {
    "completed": OK,
    "failed": FAILED,
    "pending": SUSPENDED,
    "running": SUSPENDED,
    "suspended": SUSPENDED,
    "denied": DENIED,
    "terminated": TERMINATED,
    "killed": KILLED,
    "in_doubt": IN_DOUBT,
    "refused": KILLED,
}
STATUSES = tuple(_BY_STATUS)
"""Every status of a run."""

_BY_CODE = {
    error.code: error.exit_status
    for error in (
        errors.DeniedError,
        errors.TerminatedError,
        errors.KilledError,
        errors.IsolationError,
        errors.OverloadedError,
    )
}


def of(run: RunView) -> int:
    """Exit status of a command that drove this run. A refused run says by its error's code why it was refused."""
    if run.status in ("refused", "failed") and run.error_code in _BY_CODE:
        return _BY_CODE[run.error_code]
    return _BY_STATUS[run.status]
