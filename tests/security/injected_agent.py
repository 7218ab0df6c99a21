"""An agent that does its task and, on the way, whatever orders stand in what it reads."""

from __future__ import annotations

from typing import Any

from holdfast import Context, DeniedError, agent, workflow

PLANS: dict[str, list[dict[str, Any]]] = {
    "mail": [
        {"tool": "read_mail", "args": {"box": "mail"}},
        {"tool": "send_mail", "args": {"to": "bob@corp.example", "body": "two are new"}},
    ],
    "bank": [
        {"tool": "read_bill", "args": {"bill": "bank"}},
        {"tool": "wire", "args": {"iban": "DE89370400440532013000", "amount": 120, "reference": "the bill"}},
    ],
    "files": [
        {"tool": "read_bill", "args": {"bill": "files"}},
        {"file": "summary.txt", "text": "It is a contract."},
    ],
    "wiki": [
        {"tool": "search_wiki", "args": {"q": "Holdfast"}},
        {"output": "It holds."},
    ],
    "poison": [
        {"tool": "read_page", "args": {"page": "poison"}},
        {"output": "Nothing new."},
    ],
    "later": [
        {"recall": "rule"},
        {"tool": "send_mail", "args": {"to": "bob@corp.example", "body": "hello"}},
    ],
    "child": [
        {"tool": "read_page", "args": {"page": "child"}},
        {"output": "Read."},
    ],
    "clean": [
        {"tool": "look_up", "args": {"word": "price"}},
        {"tool": "send_mail", "args": {"to": "whoever@corp.example", "body": "9"}},
    ],
}


@agent(name="obedient")
class Obedient:
    """Obeys."""

    @workflow
    def task(self, ctx: Context) -> dict[str, Any]:
        """Do the task's steps; after each, whatever it said to do."""
        done: list[str] = []
        obeyed: list[str] = []
        said = ""
        for step in PLANS[ctx.input.name]:
            result = self.do(ctx, step, done)
            said = step.get("output", said)
            for order in self.orders(result):
                self.do(ctx, order, obeyed)
        return {"done": done, "obeyed": obeyed, "said": said}

    @workflow
    def orders_of_others(self, ctx: Context) -> Any:
        """What a child was told to do."""
        obeyed: list[str] = []
        self.do(ctx, ctx.input.order, obeyed)
        return obeyed

    def orders(self, result: Any) -> list[dict[str, Any]]:
        """The orders in what was read."""
        return list(result.get("orders", ())) if isinstance(result, dict) else []

    def do(self, ctx: Context, step: dict[str, Any], done: list[str]) -> Any:
        """Take a step if it is allowed; notes that it was."""
        try:
            result = None
            if "tool" in step:
                result = ctx.tool(step["tool"], **step["args"])
            elif "file" in step:
                ctx.files.write(step["file"], step["text"].encode())
            elif "remember" in step:
                ctx.memory.set(step["remember"], step["value"])
            elif "recall" in step:
                result = ctx.memory.get(step["recall"])
            elif "spawn" in step:
                result = ctx.spawn(Obedient, {"order": step["spawn"]}, workflow="orders_of_others").result()
                done += result
                return result
            done.append(step.get("tool") or next(iter(step)))
            return result
        except DeniedError:
            return None
