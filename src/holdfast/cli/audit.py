"""``holdfast audit``: the record as it grows, and whether it is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast import config
from holdfast.cli import exits, opening, output
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.audit.report import Report
    from holdfast.journal.event import Event
    from holdfast.journal.sqlstore import SqlStore

app = typer.Typer(help="Read the record and check that it is whole.", no_args_is_help=True)
PAUSE = 0.2
"""Seconds between two looks for new events."""


@contextmanager
def journal() -> Iterator[tuple[SqlStore, Path]]:
    """The journal of the home, to read.

    Raises:
        UsageError: there is none.
    """
    from holdfast.journal.open import open_store

    home = config.home_folder()
    url = config.load(home).store.url
    if url.startswith("sqlite") and not any((home / name).exists() for name in ("holdfast.db", "audit")):
        raise UsageError(f"there is no journal in {home}; name the home with {config.HOME}")
    store = open_store(url, home)
    try:
        yield store, home
    finally:
        store.close()


@app.command()
def tail(
    tenant: Annotated[str, typer.Option(help="Only this tenant's log.")] = "",
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    kind: Annotated[str, typer.Option(help="Only this kind of event, or all that begin with it: run, intent …")] = "",
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="So many of the latest events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until interrupted.")] = False,
    json: opening.Json = False,
) -> None:
    """Print the latest events of the record (with --json one object a line)."""
    from holdfast.audit import tail as record

    with journal() as (store, _):
        sizes = {row.name: row.log_size for row in store.tenants()}
        if tenant and tenant not in sizes:
            raise UsageError(f"there is no tenant {tenant}; there are: {', '.join(sizes) or 'none'}")
        if run and store.stream(run) is None:
            raise UsageError(f"there is no run {run}; `holdfast runs list` shows those there are")
        wanted = record.Filter(tenant=tenant or None, run=run or None, kind=kind or None)
        for event in record.latest(store, wanted, lines):
            _print(event, json)
        if follow:
            for event in record.follow(store, wanted, _pause, sizes):
                _print(event, json)


def _pause() -> bool:
    time.sleep(PAUSE)
    return True


def _print(event: Event, json: bool) -> None:
    from holdfast.audit.tail import row
    from holdfast.journal.event import encode

    if json:
        output.say(encode(event).decode())
        return
    item = row(event)
    words = [item.kind, item.verdict, item.name, item.rule and f"[{item.rule}]", item.reason]
    if item.witness != "node":
        words.append(f"(as the {item.witness} says)")
    place = f"{item.run} {item.seq}"
    output.say(f"{output.shown_when(item.at)}  {item.tenant:<10} {place:<28} {' '.join(filter(None, words))}")


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Only this run, and the log that it stands in.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's log.")] = "",
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A copy of audit.pub that you keep elsewhere.")
    ] = None,
    json: opening.Json = False,
) -> None:
    """Check that nothing was changed, removed, inserted, swapped or cut. Exit status 9 when something was."""
    from holdfast.audit.verify import verify as check

    with journal() as (store, home), output.progress("reading the record", quiet=json) as line:
        report = check(
            store,
            home,
            run=run or None,
            tenant=tenant or None,
            trusted=key,
            progress=lambda done, total: line.update(f"{done} of {total} events"),
        )
    if any(finding.code == "run.unknown" for finding in report.findings):
        raise UsageError("; ".join(finding.message for finding in report.findings))
    if json:
        output.emit(report_object(report))
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(exits.AUDIT)


def report_object(report: Report) -> dict[str, Any]:
    """The JSON object of ``audit verify``."""
    import msgspec

    findings = [{**msgspec.structs.asdict(finding), "where": finding.where} for finding in report.findings]
    return {
        "ok": report.ok,
        "findings": findings,
        "more_findings": report.suppressed,
        "warnings": report.warnings,
        "counts": msgspec.structs.asdict(report.counts),
    }


def _show(report: Report) -> None:
    counts = report.counts
    for finding in report.findings:
        output.say(f"{finding.where}: {finding.message} ({finding.code})", "red")
    if report.suppressed:
        output.say(f"and {report.suppressed} more", "red")
    for warning in report.warnings:
        output.say(f"note: {warning}", "yellow")
    looked = f"{counts.events} events of {counts.runs} runs, {counts.payloads} payloads, {counts.heads} signed heads"
    decided = f"{counts.decisions} verdicts decided again"
    if report.ok:
        output.say(f"verified: {looked}, {decided}", "green")
    else:
        output.say(
            f"the record does not verify: {len(report.findings) + report.suppressed} findings in {looked}", "red"
        )
