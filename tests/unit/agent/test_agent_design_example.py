"""The design's example, verbatim, in the real worker process."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, model

EXAMPLE = """
from waxell_sdk import agent, workflow, decision

@agent(name="financial-reconciliation")
class ReconciliationAgent:
    @workflow
    def run(self, ctx):
        result = ctx.call(self.validate)
        return ctx.call(self.execute, result)

    @decision
    def validate(self, ctx):
        return ctx.llm.classify(
            ctx.input.transaction,
            categories=["approved", "flagged", "requires-review"]
        )

    def execute(self, ctx, result): ...
"""


@pytest.mark.parametrize("name", ["waxell_sdk", "holdfast"])
def test_the_design_example_runs_verbatim(tmp_path: Path, name: str) -> None:
    (tmp_path / "example.py").write_text(EXAMPLE.replace("waxell_sdk", name))
    answers = {"llm.classify": model(value="flagged")}
    with Broker(tmp_path, "example.py:ReconciliationAgent", input={"transaction": "pay 3"}, answers=answers) as broker:
        broker.run()
        assert broker.output is None
        assert broker.loaded == wire.Loaded("financial-reconciliation", "run", {})
        assert list(broker.ids.values()) == ["validate.1", "validate.1/llm.classify.1", "execute.1"]
        assert [call.kind for call in broker.of(wire.Call)] == ["decision", "step"]
        assert broker.values["execute.1"] == {"result": "flagged"}
        assert broker.values["validate.1/llm.classify.1"] == {
            "messages": [{"role": "user", "content": "pay 3"}],
            "categories": ["approved", "flagged", "requires-review"],
        }
        assert broker.process.wait(60) == 0
