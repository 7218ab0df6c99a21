"""``holdfast sandbox``: which isolation levels this machine can hold."""

from __future__ import annotations

from typing import Any

import typer

from holdfast import config
from holdfast.cli import exits, opening, output

app = typer.Typer(help="Show which isolation levels this machine can hold.", no_args_is_help=True)


@app.command()
def probe(json: opening.Json = False) -> None:
    """Boot a command at each isolation level. Exit status 8 when the configured level is not to be had."""
    import asyncio

    settings = config.load().sandbox
    wanted = settings.level
    with output.progress("starting a boundary at each level", quiet=json):
        found = asyncio.run(probe_levels(settings.uid_range))
    if json:
        output.emit({"wanted": wanted, "levels": found})
    else:
        for item in found:
            words = f"in {item['seconds'] * 1000:.0f} ms" if item["available"] else f"{item['reason']}; {item['cure']}"
            mark = "yes" if item["available"] else "no "
            output.say(f"{mark}  {item['level']:<10} {words}", "green" if item["available"] else "dim")
    if not any(item["available"] for item in found if item["level"] == wanted):
        raise typer.Exit(exits.ISOLATION)


async def probe_levels(uid_range: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """What a probe of every level finds, weakest level first."""
    from holdfast.errors import IsolationError
    from holdfast.sandbox import levels

    found = []
    for name in levels.NAMES:
        try:
            result = await levels.level(name, uid_range=uid_range).probe()
        except IsolationError as error:
            reason, _, cure = str(error).partition("; ")
            item = {"level": name, "available": False, "reason": reason, "cure": cure, "seconds": 0.0}
        else:
            item = {key: getattr(result, key) for key in ("level", "available", "reason", "cure", "seconds")}
        found.append(item)
    return found
