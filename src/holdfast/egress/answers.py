"""What the engine itself answers: denials and failures, as JSON that a program can act on."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from holdfast.egress.base import Deny, Headers, ResponseHead

STATUSES: Final = {
    "connect_failed": 502,
    "tls_failed": 502,
    "upstream_reset": 502,
    "upstream_closed": 502,
    "upstream_framing": 502,
    "undecodable": 502,
    "response_too_large": 502,
    "upstream_timeout": 504,
    "lease": 503,
    "stopped": 503,
    "ssrf": 403,
}
"""Status by the reason for which an exchange was broken off (:attr:`Outcome.aborted`)."""
AGAIN: Final = frozenset({"connect_failed", "upstream_timeout", "lease"})
"""Failures after which sending the same again can help."""
_REASONS: Final = {
    "connect_failed": "no connection to the upstream could be made",
    "tls_failed": "the upstream's TLS or certificate was not accepted",
    "upstream_reset": "the upstream reset the connection before it answered in full",
    "upstream_closed": "the upstream closed the connection before it answered in full",
    "upstream_framing": "the upstream's answer is malformed",
    "undecodable": "the upstream's answer has a content coding that cannot be decoded within bounds",
    "response_too_large": "the upstream's answer is larger than this agent may receive",
    "upstream_timeout": "the upstream did not answer in time",
    "lease": "this node may not send now",
    "stopped": "the run is being stopped",
}


def render(deny: Deny) -> tuple[ResponseHead, bytes]:
    """A denial or failure as a response."""
    body = msgspec.json.encode(
        {
            "error": {
                "type": deny.type,
                "rule": deny.rule,
                "reason": deny.reason,
                "allowed": deny.allowed,
                "approval_id": deny.approval_id,
                "retry": deny.retry,
            }
        }
    )
    headers: Headers = ((b"content-type", b"application/json"), (b"x-holdfast-rule", _field(deny.rule)))
    if deny.retry_after_s > 0:
        headers += ((b"retry-after", b"%d" % math.ceil(deny.retry_after_s)),)
    return ResponseHead(status=deny.status, headers=headers, length=len(body)), body


def failure(aborted: str, detail: str = "") -> Deny:
    """How an exchange that broke off is told to the agent."""
    reason = _REASONS.get(aborted, "the exchange failed")
    return Deny(
        type=aborted,
        rule=aborted,
        reason=f"{reason}: {detail}" if detail else reason,
        status=STATUSES.get(aborted, 502),
        retry=aborted in AGAIN,
    )


def _field(text: str) -> bytes:
    return bytes(byte if 0x20 < byte < 0x7F else 0x5F for byte in text.encode()[:100])
