"""A service that answers from memory, so that rendering and exit statuses are seen apart from a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.action import Kill
from holdfast.cli import main, opening
from holdfast.errors import UsageError
from holdfast.node import views

SECOND = 1_000_000


class FakeService:
    """Remembers what it was asked, and gives what it was told to give."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.view = views.RunView(
            run_id="run-1", status="completed", agent="recon", workflow="run", tenant="default",
            created_at=SECOND, output={"ok": True}, isolation="namespace", cost_nano=1_234_000, steps=2,
        )  # fmt: skip
        self.open: list[views.ApprovalView] = []
        self.standing: list[Kill] = []
        self.rows: list[views.RunRow] = []
        self.error: BaseException | None = None

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.asked.append((name, (*args, kwargs)))
        if self.error is not None:
            raise self.error

    def submit(self, target: str, data: bytes, **kwargs: Any) -> str:
        self._ask("submit", target, data, **kwargs)
        return self.view.run_id

    def drive(self, run_id: str, on_event: Any = None, wait_timers_us: int = 0) -> views.RunView:
        self._ask("drive", run_id, wait_timers_us=wait_timers_us)
        if on_event is not None:
            on_event(SimpleNamespace(kind="intent", data={"id": "validate.1"}))
        return self.view

    def run(self, run_id: str) -> views.RunView:
        self._ask("run", run_id)
        if run_id != self.view.run_id:
            raise UsageError(f"there is no run {run_id}; see: holdfast runs list")
        return self.view

    def runs(self, limit: int = 50) -> list[views.RunRow]:
        self._ask("runs", limit)
        return self.rows[:limit]

    def events(self, run_id: str, start: int = 1) -> list[Any]:
        event = SimpleNamespace(seq=1, at=SECOND, kind="run.created", data={"agent": "recon"})
        return [event] if start <= 1 else []

    def approvals(self) -> list[views.ApprovalView]:
        return self.open

    def answer(self, id_: str, value: Any, reason: str, principal: views.Principal) -> None:
        self._ask("answer", id_, value, reason=reason, principal=principal)

    def signal(self, run: str, name: str, data: bytes, principal: views.Principal) -> None:
        self._ask("signal", run, name, data, principal=principal)

    def resolve(self, run: str, how: str, data: bytes, principal: views.Principal) -> None:
        self._ask("resolve", run, how, data, principal=principal)

    def kill(
        self, scope: str, name: str, reason: str, principal: views.Principal, compensate: bool
    ) -> views.KillResult:
        self._ask("kill", scope, name, reason=reason, principal=principal, compensate=compensate)
        return views.KillResult(id="k-1", ended=3, ms=12.34567)

    def kills(self) -> list[Kill]:
        return self.standing

    def lift(self, id_: str, principal: views.Principal) -> None:
        self._ask("lift", id_, principal=principal)

    def drill(self) -> views.DrillResult:
        return views.DrillResult(kill_id="k-2", run_id="run-9", ms=40.5)

    def create_tenant(self, name: str, region: str, principal: views.Principal) -> None:
        self._ask("create_tenant", name, region, principal=principal)

    def tenants(self) -> list[views.TenantView]:
        return [views.TenantView(name="acme", region="eu-west", created_at=SECOND)]

    def serve(self, ready: Any) -> None:
        ready()


class Shell:
    """Runs command lines in this process."""

    def __init__(self, service: FakeService, capture: pytest.CaptureFixture[str]) -> None:
        self.service = service
        self._capture = capture

    def __call__(self, *args: str) -> SimpleNamespace:
        status = main.main(list(args))
        out, err = self._capture.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    service = FakeService()

    @contextmanager
    def opened() -> Iterator[FakeService]:
        yield service

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    for name in ("HOLDFAST_PRINCIPAL_TOKEN", "HOLDFAST_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(opening, "service", opened)
    return Shell(service, capsys)
