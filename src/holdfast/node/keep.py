"""What a run keeps: samples of the world that replay must see again, memory, artefacts, balances."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import uuid
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from holdfast import wire
from holdfast.action import Action, Verdict
from holdfast.errors import IsolationError, PayloadError, ProtocolError, StepError
from holdfast.journal.base import MemoryWrite
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record
from holdfast.node.artefacts import MAX_FILES, Artefacts, Gathered
from holdfast.node.balance import balance
from holdfast.node.content import handed, read_ahead
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.labels import keep, kept
from holdfast.node.run import Place, idempotency_key
from holdfast.values import MAX_VALUE, dump, load

MAX_FILE = MAX_VALUE
"""Bytes of one artefact."""
MAX_READ = MAX_VALUE // 2
"""Bytes of collected files that rules look at together."""
MAX_KEY = 512


@handles(wire.Sample)
def on_sample(inc: Incarnation, message: wire.Sample) -> None:
    """Give a value that replay will see again."""
    if message.what not in ("now", "random", "uuid", "patch"):
        raise ProtocolError(f"{message.what!r} is nothing to sample")
    if message.what == "patch":
        _patch(inc, message)
    else:
        _sample(inc, message.id, message.scope, message.what, lambda: dump(_draw(inc, message)))


def _patch(inc: Incarnation, message: wire.Sample) -> None:
    """The version that the run goes by, decided the first time that it is asked for.

    A history that is older than the patch has no place for it: there the answer is 0, and takes none.
    """
    name = f"patch:{message.name}"
    scope = inc.scopes.get(message.scope)
    if scope is None:
        raise ProtocolError(f"call {message.id} names scope {message.scope}, which is not open")
    known = inc.patches.get(name)
    if known is None:
        id_ = inc.run.state.children.get(scope.path, {}).get(scope.place)
        held = inc.run.state.records[id_].action.name if id_ else ""
        if not id_ or held == name:
            value = _sample(inc, message.id, message.scope, name, lambda: dump(message.highest))
            inc.patches[name] = value
            return
        known = inc.patches[name] = b"0"
    inc.claim(message.id)
    inc.reply(message.id, known, replayed=True)


def _draw(inc: Incarnation, message: wire.Sample) -> object:
    if message.what == "now":
        return inc.run.services.clock.now()
    if message.what == "random":
        return secrets.randbelow(1 << 53)
    return str(uuid.uuid4())


@handles(wire.Balance)
def on_balance(inc: Incarnation, message: wire.Balance) -> None:
    """What is left of the budgets."""
    sha = call_digest("sample", "budget", b"")
    place, record = inc.place(message.id, message.scope, "sample", "budget", sha)
    inc.start(message.id, _balance(inc, message.id, place, record, sha))


async def _balance(inc: Incarnation, number: int, place: Place, record: Record | None, sha: str) -> None:
    if record is not None and record.finished:
        inc.serve(number, record)
        return
    # What the calls before this one did not use is given back with their outcomes.
    await inc.run.recorder.flush()
    value = dump(balance(inc.run))
    _note(inc, place, "budget", sha, {"result": value})
    inc.reply(number, value)


def _sample(inc: Incarnation, number: int, scope: int, name: str, make: Any) -> bytes:
    sha = call_digest("sample", name, b"")
    place, record = inc.place(number, scope, "sample", name, sha)
    if record is not None and record.finished:
        inc.serve(number, record)
        return record.value or b"null"
    value: bytes = make()
    _note(inc, place, name, sha, {"result": value})
    inc.reply(number, value)
    return value


def _note(
    inc: Incarnation,
    place: Place,
    name: str,
    sha: str,
    payloads: dict[str, bytes],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    data = {
        "action": Action(kind="sample", name=name, id=place.id, digest=sha),
        "parent": place.parent,
        "place": place.place,
        **more,
    }
    inc.run.recorder.note(inc.run.recorder.draft(Kind.SAMPLE, data, payloads))


@handles(wire.Memory)
def on_memory(inc: Incarnation, message: wire.Memory) -> None:
    """The agent's lasting memory."""
    if message.operation not in ("get", "set", "delete", "keys"):
        raise ProtocolError(f"{message.operation!r} is no operation on memory")
    value = inc.value(message.value)
    args = dump({"operation": message.operation, "key": message.key}) + value
    name = f"memory.{message.operation}"
    kind = "sample" if message.operation in ("get", "keys") else "memory"
    sha = call_digest(kind, name, args)
    place, record = inc.place(message.id, message.scope, kind, name, sha)
    inc.start(message.id, _memory(inc, message, place, record, value, name, sha))


async def _memory(
    inc: Incarnation, message: wire.Memory, place: Place, record: Record | None, value: bytes, name: str, sha: str
) -> None:
    run = inc.run
    if record is not None and record.finished:
        inc.serve(message.id, record)
        return
    if len(message.key) > MAX_KEY or (not message.key and message.operation not in ("keys",)):
        raise PayloadError(f"a memory key has 1 to {MAX_KEY} characters")
    tenant, agent = run.header.tenant, run.header.agent
    labels: dict[str, Any] = {}
    if message.operation in ("get", "keys"):
        # What this run wrote a moment ago must be there to be read.
        await run.recorder.flush()
        if message.operation == "get":
            entry = run.services.store.memory(tenant, agent, message.key)
            found, held = kept(entry) if entry is not None else (b"null", ())
            labels = run.beyond.labels.told(found, held)
        else:
            keys = run.services.store.memory_keys(tenant, agent)
            found = dump([key for key in keys if key.startswith(message.key)])
        _note(inc, place, name, sha, {"result": found}, labels)
        inc.reply(message.id, found)
        return
    written = value if message.operation == "set" else None
    action = Action(
        kind="memory",
        name=message.operation,
        id=place.id,
        args={"key": message.key, "value": load(value) if written else None},
        digest=sha,
    )

    await read_ahead(run, "memory", action.args, len(value))

    def writes(verdict: Verdict) -> tuple[MemoryWrite, ...]:
        left = handed(action.args, verdict)
        entry = keep(dump(left["value"]), run.beyond.labels.leaving(tenant, run.header.region)) if written else None
        return (MemoryWrite(agent=agent, key=left["key"], value=entry),)

    passage = await run.gate(
        action,
        place,
        dump(action.args),
        key=idempotency_key(run.state.run, place.id),
        memory=writes,
        outcome=lambda _: ({}, {"result": b"null"}),
        redacts=True,
    )
    if passage.written is None:
        inc.denied(message.id, passage)
    else:
        inc.reply(message.id, b"null")


@handles(wire.File)
def on_file(inc: Incarnation, message: wire.File) -> None:
    """Artefacts of the run."""
    if message.operation not in ("read", "write", "list", "delete", "collect"):
        raise ProtocolError(f"{message.operation!r} is no operation on files")
    data = inc.value(message.data)
    name = f"file.{message.operation}"
    kind = "sample" if message.operation in ("read", "list") else "file"
    sha = call_digest(kind, name, message.name.encode() + b"\0" + data)
    place, record = inc.place(message.id, message.scope, kind, name, sha)
    inc.start(message.id, _file(inc, message, place, record, data, name, sha))


async def _file(
    inc: Incarnation, message: wire.File, place: Place, record: Record | None, data: bytes, name: str, sha: str
) -> None:
    run = inc.run
    if record is not None and record.finished:
        inc.serve(message.id, record)
        return
    if message.operation == "collect":
        await collect_files(inc, message, place, sha)
        return
    files = {*run.state.files, *run.state.collected}
    if message.operation in ("read", "list"):
        await run.recorder.flush()
        if message.operation == "list":
            found = dump(sorted(one for one in files if one.startswith(message.name)))
        else:
            found = await _held(inc, message.name)
        _note(inc, place, name, sha, {"result": found})
        inc.reply(message.id, found)
        return
    _check_file(message, data, files)
    writes = message.operation == "write"
    args: dict[str, Any] = {"name": message.name, "size": len(data)}
    if writes and run.bundle.reads("file"):
        args["content"] = shown(data)

    await read_ahead(run, "file", args, len(data))

    def written(verdict: Verdict) -> tuple[dict[str, Any], dict[str, bytes]]:
        left = handed(args, verdict)
        if not writes:
            return {"effect": {"deleted": left["name"]}}, {"result": b"null"}
        held = left["content"].encode() if verdict.redactions else data
        return {"effect": {"file": left["name"], "size": len(held)}}, {"result": b"null", "data": held}

    passage = await run.gate(
        Action(kind="file", name=message.operation, id=place.id, args=args, digest=sha),
        place,
        dump(args),
        key=idempotency_key(run.state.run, place.id),
        outcome=written,
        redacts="content" in args and is_text(data),
    )
    if passage.written is None:
        inc.denied(message.id, passage)
    else:
        inc.reply(message.id, b"null")


async def _held(inc: Incarnation, name: str) -> bytes:
    run = inc.run
    files, collected = run.state.files, run.state.collected
    if name not in files and name not in collected:
        there = ", ".join(sorted({*files, *collected})) or "none"
        raise StepError(f"there is no file {name!r}; the run has {there}")
    commitment = collected[name][0] if name in collected else files[name][0]
    held = await run.services.payload(run.header.tenant, commitment)
    if held is None:
        raise StepError(f"file {name!r} was erased")
    if name not in collected:
        return held
    if (size := collected[name][1]) > MAX_FILE:
        raise StepError(f"file {name!r} has {size} bytes; at most {MAX_FILE} can be read back into a run")
    artefacts, tenant = Artefacts(run.services.home), run.header.tenant
    return await asyncio.to_thread(lambda: b"".join(artefacts.read(tenant, name, held)))


async def collect_files(inc: Incarnation, message: wire.File, place: Place, sha: str) -> None:
    """Let files out of the workspace: gathered first, decided on with what they are, then recorded."""
    run, tenant = inc.run, inc.run.header.tenant
    if len(message.name) > MAX_KEY or not message.name.isprintable():
        raise PayloadError(f"a path has at most {MAX_KEY} characters that can be printed")
    assert inc.workspace is not None
    artefacts = Artefacts(run.services.home)
    try:
        workspace = inc.workspace()
        try:
            found, blobs = await asyncio.to_thread(artefacts.gather, workspace, tenant, message.name, run.state)
        finally:
            os.close(workspace)
    except IsolationError as error:
        raise StepError(str(error)) from None
    # Each file by its own name, so that a rule about paths looks at every one.
    args: dict[str, Any] = {"name": [one.name for one in found.files], "size": sum(one.size for one in found.files)}
    try:
        if run.bundle.reads("file"):
            args["content"] = await asyncio.to_thread(_contents, artefacts, tenant, found)
        asked = dump(args)
    except PayloadError:
        await asyncio.to_thread(blobs.discard, tenant)
        raise
    result = dump(found.told())
    said = {"effect": {"collected": found.recorded()}}, {"result": result, "files": found.manifest()}
    passage = await run.gate(
        Action(kind="file", name="collect", id=place.id, args=args, digest=sha),
        place,
        asked,
        key=idempotency_key(run.state.run, place.id),
        outcome=lambda _: said,
    )
    if passage.written is None:
        await asyncio.to_thread(blobs.discard, tenant)
        inc.denied(message.id, passage)
    else:
        inc.reply(message.id, result)


def _contents(artefacts: Artefacts, tenant: str, found: Gathered) -> dict[str, str]:
    """What the files hold, for rules that look at it: all of it, or nothing leaves."""
    if (size := sum(one.size for one in found.files)) > MAX_READ:
        raise PayloadError(f"policies read what files hold: at most {MAX_READ} bytes leave at once, not {size}")
    manifest = found.manifest()
    return {one.name: shown(b"".join(artefacts.read(tenant, one.name, manifest))) for one in found.files}


def is_text(data: bytes) -> bool:
    """Whether they are text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(data: bytes) -> str:
    """What a file holds, as rules look at it: its text, or what is no text in base64, which they look behind."""
    return data.decode() if is_text(data) else base64.b64encode(data).decode()


def _check_file(message: wire.File, data: bytes, files: Collection[str]) -> None:
    name = message.name
    if not name or len(name) > MAX_KEY or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise PayloadError(f"{name[:80]!r} is no file name: relative, without .., at most {MAX_KEY} characters")
    if len(data) > MAX_FILE:
        raise PayloadError(f"file {name!r} is {len(data)} bytes; at most {MAX_FILE} are kept")
    if message.operation == "write" and name not in files and len(files) >= MAX_FILES:
        raise PayloadError(f"the run has {MAX_FILES} files already; delete some with ctx.files.delete")
    if message.operation == "delete" and name not in files:
        raise StepError(f"there is no file {name!r} to delete")
