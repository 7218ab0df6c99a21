"""What the demo stands on: a folder with the example, a model, and the public command line as subprocesses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.testing.model_server import Reply, Request

TOKEN = "let-me-approve"  # noqa: S105 - the example's controller; its SHA-256 is in the example's holdfast.toml
PATIENCE = 300.0
"""Seconds after which something that should have happened counts as failed."""


class DemoError(HoldfastError):
    """The demo saw something else than it set out to show."""

    code = "demo"


class Answer(msgspec.Struct, frozen=True):
    """What a command said."""

    status: int
    data: dict[str, Any]
    stderr: str


class Shell:
    """Runs ``holdfast`` command lines in the demo's folder."""

    def __init__(self, folder: Path, environ: dict[str, str], echo: Callable[[str], None]) -> None:
        self.folder = folder
        self.home = folder / ".holdfast"
        self._environ = {**environ, "HOLDFAST_HOME": str(self.home)}
        self._echo = echo

    def __call__(self, *words: str, expect: tuple[int, ...] = (0,), show: bool = False, **environ: str) -> Answer:
        """Run a command with ``--json``; gives its last line.

        Raises:
            DemoError: it left with another status than expected.
        """
        if show:
            self._echo("holdfast " + " ".join(_quoted(word) for word in words))
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", *words, "--json"],
            cwd=self.folder,
            env={**self._environ, **environ},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
        lines = done.stdout.splitlines()
        data = json.loads(lines[-1]) if lines else {}
        if done.returncode not in expect:
            said = done.stderr.strip() or data.get("error") or data.get("status")
            raise DemoError(f"holdfast {words[0]} left with {done.returncode}: {said}")
        return Answer(done.returncode, data, done.stderr.strip())

    def serve(self) -> Node:
        """Start a node and wait until it is ready."""
        log = (self.folder / "node.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", "serve", "--json"],
                cwd=self.folder,
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        assert process.stdout is not None
        if not process.stdout.readline():
            process.wait(PATIENCE)
            words = (self.folder / "node.log").read_text("utf-8", "replace").strip().splitlines()
            raise DemoError(f"the node did not start: {words[-1] if words else 'no word from it'}")
        return Node(process)


class Node:
    """A serving node."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: it has no chance to tidy up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and insist after a while."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(15)
        if self._process.stdout is not None:
            self._process.stdout.close()


def example() -> Path:
    """The folder of the reconciliation example: in a clone beside the source, in an installation within the package.

    Raises:
        UsageError: it is missing.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parents[1] / "examples", package / "examples"):
        if (folder / "reconciliation" / "agent.py").is_file():
            return folder / "reconciliation"
    raise UsageError("the reconciliation example is missing from this installation; install holdfast again")


def prepare(folder: Path) -> None:
    """Copy the example to an empty folder.

    Raises:
        UsageError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; choose another folder")
    shutil.copytree(example(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".holdfast"))


@contextmanager
def model(environ: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """An environment with a model, and what model it is: the real one when its key is set, else a scripted server."""
    kept = {name: value for name, value in environ.items() if not name.startswith("HOLDFAST_")}
    if environ.get("ANTHROPIC_API_KEY"):
        yield kept, "Anthropic's model (ANTHROPIC_API_KEY is set)"
        return
    from holdfast.testing.model_server import ModelServer

    with ModelServer(judge) as server:
        scripted = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "scripted"}
        plain = {name: value for name, value in kept.items() if not name.startswith(("ANTHROPIC_", "OPENAI_"))}
        yield {**plain, **scripted}, "scripted (no key is set): a server on loopback that speaks the real protocol"


_LINE = re.compile(r"paid (\d+) cents, invoice \S+ says (\d+) cents")


def judge(request: Request) -> Reply | None:
    """What the scripted model says: it compares the two amounts of a line, and makes every letter friendlier."""
    from holdfast.testing.model_server import Reply

    if request.operation != "classify":
        return Reply(text="Dear customer, surely it slipped your mind: your payment is a little late. " * 2)
    found = _LINE.search(request.last)
    if found is None:
        return None
    paid, invoiced = map(int, found.groups())
    word = "approved" if paid == invoiced else "flagged" if paid < invoiced else "requires-review"
    return Reply(category=word, delay=0.02)


def until(what: str, look: Callable[[], Any], pause: float = 0.5) -> Any:
    """Look until there is something; gives it.

    Raises:
        DemoError: nothing came in time.
    """
    wake = threading.Event()
    end = time.monotonic() + PATIENCE
    while True:
        if found := look():
            return found
        if time.monotonic() > end:
            raise DemoError(f"waited in vain for {what}; see node.log in the demo's folder")
        wake.wait(pause)


def _quoted(word: str) -> str:
    import shlex

    return word if len(word) < 60 else "…" if word.startswith("{") else shlex.quote(word)


def environment() -> dict[str, str]:
    """The environment that the demo starts from."""
    return dict(os.environ)
