"""What a rule wants redacted never leaves: not to a connector, not to a model, not to memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.node.service import Service
from holdfast.testing.model_server import ModelServer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
from holdfast import agent, workflow

CARD = "4111 1111 1111 1111"

@agent(name="careless")
class Careless:
    @workflow
    def main(self, ctx):
        said = ctx.llm.generate(f"Is {CARD} a valid card?", system=f"The card is {CARD}.")
        told = ctx.tool("echo", text=f"card {CARD}", nested=[{"card": CARD}])
        ctx.memory.set("card", CARD)
        return {"said": said, "told": told, "kept": ctx.memory.get("card")}
"""
BANK = """
def echo(text, nested):
    return {"text": text, "nested": nested}
"""
SETTINGS = """
[llm]
model = "scripted-1"
provider = "anthropic"
[connectors.echo]
call = "bank.py:echo"
effect = "pure"
"""
POLICY = """
version: 1
policies:
  - id: cards
    category: pan_guard
    gates: [llm, tool, memory]
    on_breach: redact
"""


def test_nothing_of_a_card_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("careless.py", AGENT), ("bank.py", BANK), ("holdfast.toml", SETTINGS), ("p.yaml", POLICY)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    home = tmp_path / "home"
    with ModelServer([{"text": "yes"}]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        with Service.open(config.load(home), home) as service:
            run = service.submit("careless.py:Careless", b"{}", policy_files=(Path("p.yaml"),))
            view = service.drive(run)
            assert view.status == "completed", view
            assert verify(service.store, home, run=None, tenant=None).ok
        sent = json.dumps([request.body for request in server.requests])
    assert len(server.requests) == 1
    for text in (sent, json.dumps(view.output["told"]), view.output["kept"]):
        assert "4111 1111 1111 1111" not in text
        assert "1111" in text, "the last four stay"
