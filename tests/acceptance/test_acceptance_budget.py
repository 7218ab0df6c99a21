"""A budget under parallel calls: reserved in full before anything is sent, settled to what was used, used again."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.egress.bindings import binding
from holdfast.node.service import Service
from holdfast.node.views import Principal
from holdfast.testing.model_server import Figures, ModelServer, Reply, Request

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
from holdfast import DeniedError, agent, workflow

@agent(name="parallel")
class Parallel:
    @workflow
    async def main(self, ctx):
        answers = await ctx.gather(*[self.one(ctx) for _ in range(ctx.input.first)], return_exceptions=True)
        for _ in range(ctx.input.more):
            answers += await ctx.gather(*[self.one(ctx) for _ in range(10)], return_exceptions=True)
        return {
            "answered": sum(isinstance(a, str) for a in answers),
            "denied": sum(isinstance(a, DeniedError) for a in answers),
        }

    async def one(self, ctx):
        return await ctx.llm.generate("reconcile", max_tokens=1000)
"""
POLICY = """
version: 1
policies:
  - id: ceiling
    category: budget_usd
    with: {{limit: "{limit}", window: run, floor_tokens: 1000}}
    on_breach: deny
"""
PRICES = """
[llm]
model = "scripted-1"
provider = "anthropic"
[llm.prices."scripted-1"]
input = 1.0
output = 10.0
"""
CALLS = 37


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parallel.py").write_text(AGENT)
    (tmp_path / "holdfast.toml").write_text(PRICES)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-budget")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def worst_case(place: Path, server: ModelServer) -> int:
    """What one call reserves: read from a run that makes one."""
    home = place / "probe"
    policy = place / "probe.yaml"
    policy.write_text(POLICY.format(limit="1"))
    with Service.open(config.load(home), home) as service:
        run = service.submit("parallel.py:Parallel", b'{"first":1,"more":0}', policy_files=(policy,))
        assert service.drive(run).output == {"answered": 1, "denied": 0}
        intents = [e for e in service.events(run) if e.kind == "intent" and e.data["action"]["kind"] == "llm"]
        (reservation,) = intents[0].data["verdict"]["reservations"]
    assert reservation["amount"] > 10_000_000
    return int(reservation["amount"])


def watch_ledger(home: Path) -> None:
    """Keep every version of every ledger row, as the database wrote it."""
    with sqlite3.connect(home / "holdfast.db") as database:
        database.execute("CREATE TABLE versions (key TEXT, reserved INTEGER, settled INTEGER, ceiling INTEGER)")
        for event in ("INSERT", "UPDATE"):
            database.execute(
                f"CREATE TRIGGER watch_{event} AFTER {event} ON ledger BEGIN "
                "INSERT INTO versions VALUES (NEW.key, NEW.reserved, NEW.settled, NEW.ceiling); END"
            )


def versions(home: Path) -> list[tuple[str, int, int, int]]:
    with sqlite3.connect(home / "holdfast.db") as database:
        return database.execute("SELECT * FROM versions WHERE key LIKE 'budget%'").fetchall()


def test_only_what_fits_is_sent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer([{"text": "ok"}]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        worst = worst_case(place, server)
    policy = place / "policy.yaml"
    policy.write_text(POLICY.format(limit=f"{worst * CALLS / 1e9:.9f}"))
    home = place / "home"
    with ModelServer([{"text": "ok", "gate": "all"}]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        with Service.open(config.load(home), home) as service:
            run = service.submit("parallel.py:Parallel", b'{"first":100,"more":0}', policy_files=(policy,))
            watch_ledger(home)
            opener = threading.Thread(target=open_when_all_asked, args=(server, home, run))
            opener.start()
            view = service.drive(run)
            opener.join()
            assert view.output == {"answered": CALLS, "denied": 100 - CALLS}
            assert len(server.requests) == CALLS
            assert verify(service.store, home, run=None, tenant=None).ok
    rows = versions(home)
    assert rows
    assert all(reserved + settled <= limit for _, reserved, settled, limit in rows)
    assert max(reserved for _, reserved, _, _ in rows) == worst * CALLS


def open_when_all_asked(server: ModelServer, home: Path, run: str, asked: int = 100) -> None:
    """No reply before every call has been decided: 37 held at the server, the others denied in the journal."""
    server.wait_held("all", CALLS)
    decided = threading.Event()
    with Service.open(config.load(home), home) as service:
        while sum(e.kind == "verdict" for e in service.events(run)) < asked - CALLS:
            decided.wait(0.05)
    server.release("all")


FLOOD = """
import asyncio
import aiohttp
from holdfast import agent, workflow

@agent(name="flood")
class Flood:
    @workflow
    def main(self, ctx):
        return ctx.call(self.all, ctx.input.url, ctx.input.count)

    async def all(self, url, count):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
            statuses = await asyncio.gather(*(self.one(session, url, n) for n in range(count)))
        return {str(status): statuses.count(status) for status in set(statuses)}

    async def one(self, session, url, n):
        said = {"model": "scripted-1", "max_tokens": 1000, "messages": [{"role": "user", "content": f"{n:04}"}]}
        async with session.post(url, json=said) as answer:
            await answer.read()
            return answer.status
"""


def test_through_the_proxy_only_what_fits_is_sent_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "flood.py").write_text(FLOOD)
    limit, sent = "1", 1
    for count in (1, 200):
        home = place / f"home-{count}"
        with ModelServer([{"text": "ok", "gate": "all"} if count > 1 else {"text": "ok"}]) as server:
            authority = server.url.removeprefix("http://")
            (place / "holdfast.toml").write_text(f'[egress]\nallow_private = ["{authority}"]\n' + PRICES)
            policy = place / "policy.yaml"
            listed = f'  - {{id: where-to, category: egress_allowlist, with: {{hosts: ["{authority}"]}}}}\n'
            policy.write_text(POLICY.format(limit=limit) + listed)
            with Service.open(config.load(home), home) as service:
                me = Principal(name="alice", auth="token")
                bound = binding("header:x-api-key", authority)
                service.set_secret("default", "llm", bound, b"sk-test-budget", principal=me)
                given = json.dumps({"url": f"{server.url}/v1/messages", "count": count}).encode()
                run = service.submit("flood.py:Flood", given, policy_files=(policy,))
                watch_ledger(home)
                opener = threading.Thread(target=open_when_all_asked, args=(server, home, run, count))
                if count > 1:
                    opener.start()
                view = service.drive(run)
                if count > 1:
                    opener.join()
                assert view.status == "completed", view.error
                assert verify(service.store, home, run=None, tenant=None).ok
                if count == 1:
                    (worst,) = {row[1] for row in versions(home) if row[1]}
                    limit, sent = f"{worst * CALLS / 1e9:.9f}", CALLS
            assert view.output == ({"200": 1} if count == 1 else {"200": CALLS, "403": count - CALLS})
            assert len(server.requests) == (1 if count == 1 else sent)
        rows = versions(home)
        assert all(reserved + settled <= ceiling for _, reserved, settled, ceiling in rows)


def test_what_is_freed_is_used_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer([{"text": "ok"}]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        worst = worst_case(place, server)
    limit = worst * 12
    policy = place / "policy.yaml"
    policy.write_text(POLICY.format(limit=f"{limit / 1e9:.9f}"))
    home = place / "home"
    chance = random.Random(7)

    def reply(request: Request) -> Reply:
        return Reply(text="ok", usage=Figures(input=chance.randint(1, 300), output=chance.randint(1, 400)))

    with ModelServer(reply) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        with Service.open(config.load(home), home) as service:
            run = service.submit("parallel.py:Parallel", b'{"first":30,"more":6}', policy_files=(policy,))
            watch_ledger(home)
            view = service.drive(run)
            assert view.status == "completed"
    rows = versions(home)
    assert all(reserved + settled <= at for _, reserved, settled, at in rows)
    assert rows[-1][1] == 0, "nothing stays reserved"
    assert rows[-1][2] == view.cost_nano
    # More were answered than worst cases fit at once: what the early ones left over was spent by later ones.
    assert view.output["answered"] > 12
