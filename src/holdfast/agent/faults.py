"""Errors across the channel: what the node's Fault raises here, and what an exception tells the node."""

from __future__ import annotations

from holdfast import wire
from holdfast.errors import DeniedError, HoldfastError, ProtocolError, StepError

MAX_MESSAGE = 4000
"""Characters of an exception's message that are told."""


def _codes(base: type[HoldfastError]) -> dict[str, type[HoldfastError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _codes(child)
    return found


_BY_CODE = _codes(HoldfastError)


def error_of(answer: wire.Go | wire.Reply | wire.Fault | wire.Chunk) -> HoldfastError:
    """The error that a Fault stands for; a code that this version does not know is a StepError."""
    if not isinstance(answer, wire.Fault):
        return ProtocolError(f"{wire.describe(answer)} is no answer to this call")
    kind = _BY_CODE.get(answer.code, StepError)
    if kind is DeniedError:
        return DeniedError(answer.message, answer.rule)
    return kind(answer.message)


def told(error: BaseException) -> tuple[str, str, str, str]:
    """Type name, message, code and rule of an exception, bounded."""
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - an author's __str__ may raise anything
        message = f"(its message raised {type(broken).__name__})"
    code = error.code if isinstance(error, HoldfastError) else ""
    rule = error.rule if isinstance(error, DeniedError) else ""
    clean = message[:MAX_MESSAGE].encode("utf-8", "replace").decode()
    return type(error).__name__[:200], clean, code, rule[:200]
