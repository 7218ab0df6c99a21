"""The demo's parts that need no node: its data, its policies, its scripted model, the byte that it changes."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import config
from holdfast.cli import demo_shell, demo_story
from holdfast.errors import UsageError
from holdfast.policy.bundle import load

EXAMPLE = demo_shell.example()


def lines() -> list[dict[str, Any]]:
    return [line for party in demo_story.parties(EXAMPLE / "data" / "statement.csv") for line in party["lines"]]


def test_the_statement_is_what_its_maker_makes() -> None:
    code: dict[str, Any] = {"__name__": "make_statement"}
    exec(compile((EXAMPLE / "make_statement.py").read_text("utf-8"), "make_statement.py", "exec"), code)
    made = io.StringIO()
    code["write"](made)
    assert (EXAMPLE / "data" / "statement.csv").read_text("utf-8") == made.getvalue()


def test_the_statement_has_something_for_each_chapter() -> None:
    assert len(lines()) == 240
    excess = [(line["paid_cents"] - line["invoiced_cents"], line["country"]) for line in lines()]
    assert sum(amount > 1_000_000 for amount, _ in excess) == 1
    assert sum(amount > 0 and country == "KP" for amount, country in excess) == 2
    assert sum(amount < 0 for amount, _ in excess) == 5


def test_account_numbers_have_valid_check_digits() -> None:
    for line in lines():
        moved = line["iban"][4:] + line["iban"][:4]
        assert int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def test_the_examples_settings_and_policies_are_good() -> None:
    settings = config.load(EXAMPLE, cwd=EXAMPLE, environ={})
    assert set(settings.connectors) == {"post_entry", "wire_transfer"}
    assert {rule.id for rule in load(settings.policy.files).rules} >= {"embargo", "large-refunds", "letter-budget"}


def test_the_scripted_model_judges_by_the_amounts() -> None:
    def ask(paid: int, invoiced: int) -> str | None:
        text = f"Bank line 1 from X: paid {paid} cents, invoice I-1 says {invoiced} cents."
        reply = demo_shell.judge(SimpleNamespace(operation="classify", last=text))  # type: ignore[arg-type]
        return reply.category if reply else None

    assert [ask(5, 5), ask(4, 5), ask(6, 5)] == ["approved", "flagged", "requires-review"]


def test_without_a_key_no_key_and_no_setting_of_the_callers_is_used() -> None:
    environ = {"OPENAI_API_KEY": "mine", "HOLDFAST_STORE_URL": "postgresql://mine", "PATH": "/bin"}
    with demo_shell.model(environ) as (given, words):
        assert "scripted" in words
        assert given["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")
        assert "OPENAI_API_KEY" not in given
        assert "HOLDFAST_STORE_URL" not in given
        assert given["PATH"] == "/bin"
    with demo_shell.model({"ANTHROPIC_API_KEY": "real"}) as (given, words):
        assert "scripted" not in words
        assert given == {"ANTHROPIC_API_KEY": "real"}


def test_the_demo_works_in_an_empty_folder_only(tmp_path: Path) -> None:
    demo_shell.prepare(tmp_path / "new")
    assert (tmp_path / "new" / "agent.py").is_file()
    with pytest.raises(UsageError, match="not empty"):
        demo_shell.prepare(tmp_path / "new")


def test_one_byte_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.db"
    body = b'{"at":1764331200000000,"auth":"system"}'
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE events (stream TEXT, seq INTEGER, idx INTEGER, kind TEXT, body BLOB)")
        db.executemany("INSERT INTO events VALUES ('run-1', ?, ?, 'outcome', ?)", [(n, n, body) for n in range(4)])
    db.close()
    assert demo_story.flip(path) == "run-1 event 2"
    db = sqlite3.connect(path)
    bodies = [row[0] for row in db.execute("SELECT body FROM events ORDER BY idx")]
    db.close()
    assert [found == body for found in bodies] == [True, True, False, True]
    assert sum(a != b for a, b in zip(bodies[2], body, strict=True)) == 1
