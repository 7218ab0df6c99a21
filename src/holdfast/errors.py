"""Every error that a user can meet: a stable code, an exit status, one sentence with the cure.

This module is imported inside every sandbox, so it imports nothing.
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Base of all errors of Holdfast. The message says what happened and what to do about it."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1


class UsageError(HoldfastError):
    """The command or call was refused before a run existed: unknown target, bad JSON, bad option."""

    code = "usage"
    exit_status = 2


class ConfigError(UsageError):
    """``holdfast.toml`` or a ``HOLDFAST_*`` variable cannot be used."""

    code = "config"


class PolicyFileError(UsageError):
    """A policy file cannot be used. The message names the file, the line and the key."""

    code = "policy_file"


class RunError(HoldfastError):
    """The author's code failed: an exception left the workflow, or a step used up its attempts."""

    code = "run_failed"


class StepError(RunError):
    """A step, tool or connector failed after its last attempt. Catch it to go another way."""

    code = "step_failed"


class StepTimeout(StepError):
    """A step, tool, connector or LLM call did not answer within its time-out."""

    code = "timeout"


class LLMError(StepError):
    """The model's provider refused or failed; the message says which and what to check."""

    code = "llm_failed"


class PayloadError(StepError):
    """A value cannot be recorded: too large, or not JSON. The message names the place."""

    code = "payload"


class DivergenceError(RunError):
    """The code asked for another step than its journal holds. The run is kept for repair."""

    code = "diverged"


class OverloadedError(HoldfastError):
    """Too much waits already: the run was refused and did nothing. Try again later."""

    code = "overloaded"
    exit_status = 2


class DeniedError(HoldfastError):
    """A policy denied an action. ``rule`` is the policy's id. Catch it to go another way."""

    code = "denied"
    exit_status = 4

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class TerminatedError(HoldfastError):
    """A policy ended the run (a budget, say)."""

    code = "terminated"
    exit_status = 5


class KilledError(HoldfastError):
    """A kill ended the run, or a standing kill refuses it."""

    code = "killed"
    exit_status = 6


class InDoubtError(HoldfastError):
    """An irreversible effect has an intent and no outcome: only a person can say what happened."""

    code = "in_doubt"
    exit_status = 7


class IsolationError(HoldfastError):
    """The isolation level that was asked for cannot be had here. Never a silent downgrade."""

    code = "isolation"
    exit_status = 8


class AuditError(HoldfastError):
    """The record does not verify."""

    code = "audit"
    exit_status = 9


class StoreError(HoldfastError):
    """The disk, the lock or the database cannot be used."""

    code = "store"
    exit_status = 10


class ProtocolError(HoldfastError):
    """The other side of a channel broke the protocol. Harms its own run only."""

    code = "protocol"
