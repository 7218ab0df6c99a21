"""What the command line prints: tables and progress on a terminal, plain lines in a pipe, JSON on request."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.node.views import RunRow, RunView

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "completed": "green",
    "running": "cyan",
    "pending": "cyan",
    "suspended": "yellow",
    "in_doubt": "yellow",
    "failed": "red",
    "denied": "red",
    "terminated": "red",
    "killed": "red",
    "refused": "red",
}
"""Colour of each status on a terminal."""


def is_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def console(stderr: bool = False) -> Console:
    """A Rich console, which takes a while to import."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object as one line: the last of stdout."""
    sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    sys.stdout.flush()


def say(text: str = "", style: str = "") -> None:
    """Print a line; ``style`` is Rich's, for a terminal."""
    if style and is_terminal():
        from rich.text import Text

        console().print(Text(text, style=style), soft_wrap=True)
    else:
        print(text)


def complain(text: str) -> None:
    """Print an error: one line on stderr."""
    line = "error: " + " ".join(text.split())
    if sys.stderr.isatty():
        from rich.text import Text

        console(stderr=True).print(Text(line, style="red"), soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows: a table on a terminal, tab-separated lines in a pipe. ``empty`` is said when there are none."""
    if not is_terminal():
        for row in rows:
            print("\t".join(row))
        return
    if not rows:
        say(empty, "dim")
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    console().print(shown)


class Progress:
    """A line of progress on a terminal's stderr; silent in a pipe."""

    def __init__(self, status: Any = None) -> None:
        self._status = status

    @property
    def shown(self) -> bool:
        """Whether anyone sees it."""
        return self._status is not None

    def update(self, text: str) -> None:
        """Show what is going on."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))


@contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show a spinner while something takes long, unless ``quiet`` or not on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.text import Text

    with console(stderr=True).status(Text(text)) as status:
        yield Progress(status)


def when(us: int | None) -> str | None:
    """RFC 3339 text (UTC) of microseconds since the Unix epoch."""
    if us is None:
        return None
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=us)
    return moment.isoformat(timespec="microseconds") + "Z"


def shown_when(us: int | None) -> str:
    """The same for a person, to the second."""
    return (when(us) or "never")[:19].replace("T", " ")


def dollars(nano: int) -> str:
    """Nano-dollars as text."""
    return f"${nano / 1e9:.6f}".rstrip("0").ljust(5, "0")


def compact(value: Any, limit: int = 200) -> str:
    """JSON text of a value, cut to ``limit`` characters."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def run_object(run: RunView) -> dict[str, Any]:
    """The JSON object of ``run``, ``runs show`` and ``runs resume``."""
    return {
        "run_id": run.run_id,
        "status": run.status,
        "output": run.output,
        "error": run.error or None,
        "isolation": run.isolation or None,
        "cost_usd": run.cost_nano / 1e9,
        "steps": run.steps,
        "pending": [
            {"kind": item.kind, "id": item.id, "step": item.step, "expires_at": when(item.expires_at)}
            for item in run.pending
        ],
    }


def row_object(row: RunRow) -> dict[str, Any]:
    """A line of ``runs list`` as JSON."""
    return {
        "run_id": row.run_id,
        "status": row.status,
        "agent": row.agent,
        "workflow": row.workflow,
        "tenant": row.tenant,
        "created_at": when(row.created_at),
    }


def show_run(run: RunView) -> None:
    """Print how a run stands, and what to do next where it waits for someone."""
    steps = f"{run.steps} step{'' if run.steps == 1 else 's'}"
    line = f"{run.run_id}  {run.status}  {steps}  {dollars(run.cost_nano)}  {run.isolation or 'not started'}"
    say(line, STYLES.get(run.status, ""))
    if run.status == "completed":
        say(f"output: {compact(run.output, 10_000)}")
    if run.rule:
        say(f"policy: {run.rule}")
    if run.error:
        say(f"reason: {' '.join(run.error.split())}")
    for item in run.pending:
        until = f", until {shown_when(item.expires_at)}" if item.expires_at is not None else ""
        say(f"waits:  {item.kind} {item.id} at {item.step}{until}")
    for file in run.files:
        say(f"file:   {file.name}  {file.size} bytes  {file.digest[:12]}")
    if cure := _next(run):
        say(f"next:   {cure}")


def _next(run: RunView) -> str:
    kinds = {item.kind: item.id for item in run.pending}
    resume = f"holdfast runs resume {run.run_id}"
    if run.status == "in_doubt":
        return f"holdfast runs resolve {run.run_id} --done JSON | --retry | --fail"
    if run.status != "suspended":
        return ""
    if "approval" in kinds:
        return f"holdfast approvals approve {kinds['approval']} && {resume}"
    if "answer" in kinds:
        return f"holdfast approvals answer {kinds['answer']} TEXT && {resume}"
    return resume
