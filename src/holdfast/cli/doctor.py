"""``holdfast doctor``: each setting and where it comes from, and whether this machine can hold what is promised."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from holdfast import config
from holdfast import settings_kinds as kinds
from holdfast.cli import exits, opening, output
from holdfast.errors import HoldfastError


def doctor(json: opening.Json = False) -> None:
    """Show each setting with its origin and check what running needs. Exit status 1 when a check fails."""
    home = config.home_folder()
    settings = config.load(home)
    shown = list(settings_shown(settings))
    checks = [_check(name, probe) for name, probe in _checks(settings, home)]
    # What it takes to ask the nodes is not for every command's start.
    from holdfast.cli import doctor_memory

    capacity = doctor_memory.capacity(settings, home)
    if json:
        found = {"home": str(home), "file": str(settings.file or "") or None, "settings": shown, "checks": checks}
        output.emit({**found, "capacity": capacity})
    else:
        output.say(f"home  {home}")
        output.say(f"file  {settings.file or f'none ({config.FILE} in the working directory or the home)'}")
        rows = [(item["key"], item["value"], item["origin"]) for item in shown]
        output.table(("setting", "value", "from"), rows, empty="")
        for item in checks:
            mark = "ok  " if item["ok"] else "FAIL"
            cure = f"; {item['cure']}" if item["cure"] else ""
            output.say(f"{mark}  {item['name']}: {item['detail']}{cure}", "" if item["ok"] else "red")
        for line in doctor_memory.lines(capacity):
            output.say(line)
    if not all(item["ok"] for item in checks):
        raise typer.Exit(exits.FAILED)


def settings_shown(settings: config.Settings) -> Iterator[dict[str, str]]:
    """Every plain setting, and those of each name, as text. No password is among them."""
    for section, kind in config.PLAIN.items():
        yield from _section(settings, section, kind, getattr(settings, section))
    for name, connector in settings.connectors.items():
        yield from _section(settings, f"connectors.{name}", config.ConnectorSettings, connector)
    for tenant, own in settings.tenants.items():
        for name, connector in own.connectors.items():
            place = f"tenants.{tenant}.connectors.{name}"
            yield from _section(settings, place, config.ConnectorSettings, connector)
    for name, principal in settings.principals.items():
        yield from _section(settings, f"principals.{name}", config.PrincipalSettings, principal)


def _section(
    settings: config.Settings, place: str, kind: type[config.Section], value: config.Section
) -> Iterator[dict[str, str]]:
    for key, spec in kinds.fields(kind).items():
        if spec.kind.item is not None:
            for name, item in getattr(value, key).items():
                yield from _section(settings, f"{place}.{key}.{name}", type(item), item)
            continue
        dotted = f"{place}.{key}"
        held = getattr(value, key)
        text = "" if held is None else spec.kind.write(held)
        yield {"key": dotted, "value": hide_password(text), "origin": settings.origin(dotted)}


def hide_password(text: str) -> str:
    """An address without its password."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]*@", r"\1:***@", text)


class Found(Exception):
    """A check that fails, with its cure."""

    def __init__(self, detail: str, cure: str) -> None:
        super().__init__(detail)
        self.cure = cure


def _check(name: str, probe: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": probe(), "cure": ""}
    except Found as found:
        return {"name": name, "ok": False, "detail": str(found), "cure": found.cure}
    except HoldfastError as error:
        detail, _, cure = str(error).partition("; ")
        return {"name": name, "ok": False, "detail": detail, "cure": cure}


def _checks(settings: config.Settings, home: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "kernel", _kernel
    yield "home", lambda: _home(home)
    yield "variables", _variables
    yield "model", lambda: _model(settings)
    yield "policies", lambda: _policies(settings)
    yield "boundary", lambda: _boundary(settings)
    yield "memory", lambda: _memory(settings)


def _python() -> str:
    return f"{platform.python_version()} at {sys.executable}"


def _kernel() -> str:
    release = platform.release()
    if sys.platform != "linux":
        raise Found(f"this is {sys.platform}", "run the container image in a Linux VM (Docker Desktop, Colima, WSL 2)")
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < (5, 13):
        raise Found(f"Linux {release}", "use a kernel of 5.13 or newer")
    return f"Linux {release}"


def _home(home: Path) -> str:
    place = home
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise Found(f"{place} is not writable", "choose a writable folder with HOLDFAST_HOME")
    return f"{home} is writable" if place == home else f"{home} will be made at the first run"


def _variables() -> str:
    unknown = config.unknown_variables(os.environ)
    if unknown:
        raise Found(f"{', '.join(unknown)} mean nothing to Holdfast", "correct the name or unset it")
    return "every HOLDFAST_* variable is known"


def _policies(settings: config.Settings) -> str:
    from holdfast.node.bundles import layers, misfits, read

    # A serving node keeps what was in force where a layer does not go with those above it.
    if wrong := misfits(settings):
        raise Found(wrong[0], "correct it: until then a serving node goes on under the policies that it read before")
    bundle = read(settings, layers(settings, "default", ""))
    source = f"in {len(settings.policy.files)} files" if settings.policy.files else "built in"
    signed = ", signed" if settings.policy.require_signed else ""
    return f"{len(bundle.rules)} policies {source}{signed}, bundle {bundle.digest[:12]}"


def _boundary(settings: config.Settings) -> str:
    import asyncio

    from holdfast.sandbox.levels import level

    wanted = settings.sandbox.level
    found = asyncio.run(level(wanted, uid_range=settings.sandbox.uid_range).probe())
    if not found.available:
        raise Found(f"{wanted} is not to be had: {found.reason}", found.cure)
    return f"{wanted} started in {found.seconds * 1000:.0f} ms"


def _memory(settings: config.Settings) -> str:
    from holdfast.cli import doctor_memory
    from holdfast.node.admission import node_memory

    memory, source = node_memory(settings)
    if memory <= settings.node.overhead:
        raise Found(
            f"{kinds.write_size(memory)} ({source}) leave nothing for runs beside [node] overhead",
            "lower [node] overhead, or give the node more memory",
        )
    free = doctor_memory.shown(memory - settings.node.overhead)
    return f"{free} for runs, of {doctor_memory.shown(memory)} ({source})"


def _model(settings: config.Settings) -> str:
    own = settings.llm.api_key_env
    keys = [own] if own else ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"]
    found = [key for key in keys if os.environ.get(key)]
    if own and not found:
        raise Found(f"{own} is not set", f"set it, or change [llm] api_key_env in {config.FILE}")
    if not found:
        return f"no key is set: agents that use ctx.llm will fail until {' or '.join(keys)} is set"
    return f"key from {found[0]}"
