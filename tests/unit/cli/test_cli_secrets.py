"""``holdfast secrets``: the value comes on stdin, and nothing ever shows it."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.main import main
from holdfast.config import load
from holdfast.egress.vault import Vault
from holdfast.journal.event import Kind
from holdfast.journal.open import open_store

KEY = "sk-live-0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    assert KEY not in out
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_set_list_remove(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say(monkeypatch, KEY + "\n")
    bound = ["--host", "api.example.com", "--method", "GET", "--method", "post", "--path", "/v1/*", "--agent", "books"]
    assert main(["secrets", "set", "bank", *bound, "--as", "header:X-Api-Key", "--json"]) == 0
    said = last(capsys)
    assert (said["name"], said["tenant"]) == ("bank", "default")
    assert main(["secrets", "list", "--json"]) == 0
    [listed] = last(capsys)["secrets"]
    assert listed.pop("set_at").endswith("Z")
    assert listed == {
        "name": "bank",
        "tenant": "default",
        "version": said["version"],
        "as": "header:x-api-key",
        "host": "api.example.com",
        "methods": ["GET", "POST"],
        "path": "/v1/*",
        "agent": "books",
    }
    assert main(["secrets", "list"]) == 0
    line = capsys.readouterr().out
    assert "api.example.com" in line
    assert KEY not in line
    store = open_store(load(home).store.url, home)
    assert [held.value for held in Vault(store, "default").current()] == [KEY.encode()]
    assert main(["secrets", "remove", "bank", "--json"]) == 0
    assert last(capsys)["removed"] is True
    assert Vault(store, "default").current() == ()
    kinds = [(event.kind, event.auth) for event in store.events("control:default")[1:]]
    assert kinds == [(kind, f"peer-uid:{os.getuid()}") for kind in (Kind.SECRET_SET, Kind.SECRET_REMOVED)]
    store.close()
    assert main(["audit", "verify"]) == 0


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        (["set", "bank", KEY, "--host", "h.io", "--as", "bearer"], KEY, "never an argument"),
        (["set", "bank", "--host", "h.io", "--as", "bearer"], "", "0 bytes"),
        (["set", "bank", "--host", "h.io/x", "--as", "bearer"], KEY, "--host"),
        (["set", "bank", "--host", "h.io", "--as", "cookie"], KEY, "--as"),
        (["set", "../x", "--host", "h.io", "--as", "bearer"], KEY, "name"),
        (["set", "bank", "--host", "h.io", "--as", "bearer", "--tenant", "nobody"], KEY, "no tenant nobody"),
        (["remove", "bank"], "", "no secret bank"),
        (["set", "bank", "--as", "bearer"], KEY, "--host"),
    ],
)
def test_what_is_refused(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
    reason: str,
) -> None:
    say(monkeypatch, text)
    assert main(["secrets", *words]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert KEY not in err
    assert "Traceback" not in err


def test_a_terminal_is_asked_without_echo(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        asked: list[str] = []
        monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or KEY)
        assert main(["secrets", "set", "bank", "--host", "h.io", "--as", "bearer", "--json"]) == 0
    os.close(leader)
    assert asked == ["bank: "]
    assert last(capsys)["name"] == "bank"
