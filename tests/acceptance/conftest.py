"""A working directory with a home, as a person has it: agents, settings, commands, a serving node, a model server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.journal.event import Event
from holdfast.journal.fold import FINAL
from holdfast.node.service import Service
from holdfast.node.views import Principal, RunView
from holdfast.testing.model_server import ModelServer

PATIENCE = 90.0
"""Seconds that anything may take on a busy machine."""
PERSON = Principal(name="alice", auth="token", roles=("controller",))
MODEL = """
[llm]
model = "scripted-1"
provider = "anthropic"
[llm.prices."scripted-1"]
input = 1.0
output = 10.0
"""


FEATURES = """
    [node]
    grace = "50ms"
    [connectors.book]
    call = "features_bank.py:book"
    effect = "compensable"
    undo = "unbook"
    [connectors.unbook]
    call = "features_bank.py:unbook"
    effect = "idempotent"
    [connectors.pay]
    call = "features_bank.py:pay"
    [connectors.hangs]
    call = "features_bank.py:hangs"
"""


class Lab:
    """A folder and the home in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.person = PERSON
        self.model = MODEL
        self.features = FEATURES

    def write(self, name: str, text: str) -> Path:
        """Put a file there."""
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def settings(self, text: str) -> None:
        """Put the settings there."""
        self.write(config.FILE, text)

    @contextlib.contextmanager
    def service(self) -> Iterator[Service]:
        """The service, in this process."""
        with Service.open(config.load(self.home, cwd=self.folder), self.home) as service:
            yield service

    def submit(self, target: str, input_: Any = None, **options: Any) -> str:
        """Create a run; gives its id. ``policies`` are YAML items of a policy file."""
        policies = options.pop("policies", "")
        if policies:
            text = "version: 1\npolicies:\n" + textwrap.indent(textwrap.dedent(policies), "  ")
            name = f"policy-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
            options["policy_files"] = (self.write(name, text),)
        options.setdefault("principal", PERSON)
        with self.service() as service:
            return service.submit(f"{self.folder}/{target}", json.dumps(input_ or {}).encode(), **options)

    def drive(self, run: str) -> RunView:
        """Drive a run until it ends or waits."""
        with self.service() as service:
            return service.drive(run)

    def run(self, target: str, input_: Any = None, **options: Any) -> RunView:
        """Create a run and drive it."""
        return self.drive(self.submit(target, input_, **options))

    def view(self, run: str) -> RunView:
        """A run as it stands."""
        with self.service() as service:
            return service.run(run)

    def events(self, run: str, kind: str = "") -> list[Event]:
        """A run's events."""
        with self.service() as service:
            return [event for event in service.events(run) if not kind or event.kind == kind]

    def kinds(self, run: str) -> list[str]:
        """Kinds of a run's events, in order."""
        return [event.kind for event in self.events(run)]

    def verify(self) -> None:
        """The whole record must verify."""
        with self.service() as service:
            report = verify(service.store, self.home, run=None, tenant=None)
        assert report.ok, report.findings

    # processes

    def _env(self, env: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "HOLDFAST_HOME": str(self.home), **env}

    def cli(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """A command of another process."""
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *args],
            cwd=self.folder,
            env=self._env(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def json(self, *args: str, status: int = 0, **env: str) -> Any:
        """The object that a command prints."""
        done = self.cli(*args, "--json", **env)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str] = (), **env: str) -> Iterator[subprocess.Popen[str]]:
        """A node in a process of its own, which has said that it serves."""
        command = list(argv) or ["-m", "holdfast", "serve", "--json"]
        with (self.folder / "serve.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self._env(env),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert "serving" in said, (said, (self.folder / "serve.log").read_text()[-3000:])
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
            process.kill()
            process.wait()
            process.stdout.close()

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Look until something holds; gives what it gave."""
        pause = threading.Event()
        deadline = time.monotonic() + PATIENCE
        while True:
            found = holds()
            if found:
                return found
            if time.monotonic() > deadline:
                log = self.folder / "serve.log"
                raise AssertionError(
                    f"not within {PATIENCE:g} s: {what}; {log.read_text()[-2000:] if log.exists() else ''}"
                )
            pause.wait(0.03)

    def ended(self, run: str, status: str = "") -> RunView:
        """A run, once it has ended."""

        def look() -> RunView | None:
            view = self.view(run)
            return view if view.status in FINAL else None

        view: RunView = self.until(look, f"{run} ends")
        assert not status or view.status == status, view
        return view

    def reached(self, run: str, kind: str, count: int = 1) -> list[Event]:
        """A run's events of a kind, once there are so many."""

        def look() -> list[Event] | None:
            found = self.events(run, kind)
            return found if len(found) >= count else None

        found: list[Event] = self.until(look, f"{run} has {count} events {kind}")
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty working directory."""
    return Lab(tmp_path)


class Desk:
    """The lab, with an agent that has a workflow for each feature, and connectors."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab, name)

    def start(self, workflow: str, input_: Any = None, **options: Any) -> Any:
        return self.lab.run("features_agent.py:Features", input_, workflow=workflow, **options)

    def signal(self, run: str, name: str, data: bytes = b"null") -> Any:
        with self.lab.service() as service:
            service.signal(run, name, data, principal=self.lab.person)
        return self.lab.drive(run)

    def answer(self, id_: str, value: Any, who: Principal) -> None:
        with self.lab.service() as service:
            service.answer(id_, value, principal=who)

    def steps(self, run: str) -> list[str]:
        return [event.data["action"]["id"] for event in self.lab.events(run, "intent")]


@pytest.fixture
def desk(lab: Lab) -> Desk:
    """A lab with everything that an author can write."""
    for name in ("features_agent.py", "features_bank.py"):
        shutil.copy(Path(__file__).with_name(name), lab.folder / name)
    lab.settings(FEATURES + MODEL)
    return Desk(lab)


@pytest.fixture
def model_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModelServer]]:
    """Starts a scripted model server and points this process, and those that it starts, to it."""
    with contextlib.ExitStack() as stack:

        def start(script: Any, **options: Any) -> ModelServer:
            server = stack.enter_context(ModelServer(script, **options))
            monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-acceptance")
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            return server

        yield start
