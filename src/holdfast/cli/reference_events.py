"""The reference page of events: each kind, what it says, and what its data holds."""

from __future__ import annotations

import re

from holdfast.journal import event, fold
from holdfast.journal.event import Kind
from holdfast.policy import glass

MEANING = {
    Kind.RUN_CREATED: "A run was accepted: its target, input, deployment and policy bundle are pinned.",
    Kind.RUN_REFUSED: "A run was refused before it started: by a standing kill, or because too many waited.",
    Kind.RUN_CLAIMED: "A node took the run over; the epoch is higher than before.",
    Kind.RUN_STARTED: "A worker process started in a boundary of its own; what holds it is recorded.",
    Kind.INTENT: "An action was decided and may happen now. Durable before its effect leaves.",
    Kind.OUTCOME: "What came of an action. Durable before anything that depends on it leaves.",
    Kind.VERDICT: "An action was decided and did not happen; one that is throttled is decided again, once on record.",
    Kind.ATTEMPT_FAILED: "An attempt failed; another one follows.",
    Kind.WAIT: "The run waits for a person, a signal, a timer or a child.",
    Kind.INBOX: "An answer, a signal, a child's end or a repair reached the run.",
    Kind.SAMPLE: "A clock, random number, uuid or version that replay must see again.",
    Kind.LOG: "A line of the author's log, as the boundary said it.",
    Kind.RUN_SUSPENDED: "The process ended; the run goes on when what it waits for arrives.",
    Kind.RUN_CONTINUED: "The workflow started anew with another input and an empty history.",
    Kind.RUN_DIVERGED: "The code asked for another step than its journal holds.",
    Kind.RUN_IN_DOUBT: "An irreversible effect was sent and not answered; a person is asked.",
    Kind.RUN_RESOLVED: "A person said what happened, or how a diverged run goes on.",
    Kind.RUN_UNDOING: "A kill ends the run, and its compensable effects are undone first.",
    Kind.WORKER_LOST: "A worker process ended before its work did.",
    Kind.RUN_COMPLETED: "The workflow returned.",
    Kind.RUN_FAILED: "The workflow raised, or its worker could not go on.",
    Kind.RUN_DENIED: "A denied action ended the run.",
    Kind.RUN_TERMINATED: "A policy ended the run.",
    Kind.RUN_KILLED: "A kill ended the run.",
    Kind.TENANT_CREATED: "A tenant was created.",
    Kind.DEPLOYMENT_PINNED: "An agent's code was stored by content.",
    Kind.BUNDLE_PINNED: "Policies came into force: for a tenant, or for a run that goes on under them.",
    Kind.GLASS_ASKED: "Somebody asks to break the glass, and says why and for how long.",
    Kind.GLASS_JOINED: "Another person agrees; with enough of them the glass is open.",
    Kind.GLASS_CLOSED: "A broken glass ends before its time.",
    Kind.GLASS_REVIEWED: "Somebody else looked at what was done under a broken glass.",
    Kind.KILL_ISSUED: "A kill is in force from here on.",
    Kind.KILL_LIFTED: "A kill is no longer in force.",
    Kind.SECRET_SET: "A credential was set: its name, where it may go and how; never its value.",
    Kind.SECRET_REMOVED: "A credential was destroyed.",
}
"""One sentence for each kind."""

FIELDS = {
    "v": "version of the form, 1",
    "tenant": "whose event it is",
    "stream": "run, session or control stream",
    "seq": "place in the stream, from 1",
    "index": "place in the tenant's log, from 0",
    "epoch": "of the stream's owner at the time of writing",
    "kind": "see below",
    "at": "microseconds since the Unix epoch, by the writer's clock",
    "clock_error": "bound of that clock's error in microseconds; -1: unknown",
    "node": "who wrote it",
    "witness": "who saw the fact: node, boundary or in-process",
    "principal": "who asked for it",
    "auth": "how the principal was authenticated",
    "prev": "leaf hash of the stream's event before it; zeros for the first",
    "data": "what the kind says, see below",
    "payloads": "role to SHA-256(nonce ‖ payload); payloads stand apart, encrypted",
}
"""One phrase for each field of an event."""


def events(generated: str) -> str:
    """The page."""
    held = data_of_kinds()
    lines = ["# Events", "", generated]
    lines += [
        "An event is the checkpoint and the audit record at once. Its bytes are canonical JSON (RFC 8785) and never"
    ]
    lines += ["change; its leaf hash is SHA-256(0x00 ‖ bytes) as in RFC 9162. Money is in nano-dollars.", ""]
    lines += ["| field | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {FIELDS[name]} |" for name in event.Event.__struct_fields__]
    lines += ["", "| kind | meaning | data |", "| --- | --- | --- |"]
    lines += [f"| `{kind}` | {MEANING[kind]} | {held.get(kind, '')} |" for kind in Kind]
    return "\n".join([*lines, ""])


def data_of_kinds() -> dict[str, str]:
    """What ``data`` of each kind holds, as the fold that reads it describes it."""
    said = f"{fold.__doc__}\n{glass.__doc__}"
    rows = re.findall(r"^(\w[\w.]*)  +(\S.*)$", said, re.MULTILINE)
    return {kind: re.sub(r":class:`[\w.]*?(\w+)`", r"\1", text).replace("``", "`") for kind, text in rows}
