"""What rules say of what came back, and of a stream while it comes: on real runs, and on the record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.testing.model_script import Reply

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

CARD = "4111 1111 1111 1111"
MAIL = "anna.berg@corp.example"
AGENT = f"""
    from holdfast import DeniedError, agent, workflow

    CARD = "{CARD}"


    def tried(act):
        try:
            return act()
        except DeniedError as error:
            return "denied: " + str(error)


    @agent(name="reader")
    class Reader:
        @workflow
        def tool(self, ctx):
            return tried(lambda: ctx.tool("look", what="x"))

        @workflow
        def books(self, ctx):
            return tried(lambda: ctx.tool("book", card=CARD))

        @workflow
        def waits(self, ctx):
            ctx.tool("book", card=CARD)
            ctx.wait_signal("never")

        @workflow
        def answer(self, ctx):
            return ctx.llm.generate("say")

        @workflow
        def stream(self, ctx):
            heard = []

            def listen():
                for piece in ctx.llm.stream("say"):
                    heard.append(piece)

            end = tried(listen)
            return {{"heard": "".join(heard), "end": end}}

        @workflow
        def says(self, ctx):
            return {{"card": CARD, "fine": True}}

        @workflow
        def keeps(self, ctx):
            ctx.memory.set("card", {{"number": CARD}})
            ctx.files.write("card.txt", f"the card is {{CARD}}".encode())
            return [ctx.memory.get("card"), ctx.files.read("card.txt").decode()]

        @workflow
        def writes_to(self, ctx):
            return ctx.llm.generate("Write to {MAIL}.")
"""
BANK = f"""
    from pathlib import Path

    def look(what):
        return {{"text": "card {CARD}", "hits": [{{"card": "{CARD}"}}]}}

    def book(card):
        with Path("booked.txt").open("a") as file:
            file.write(card + "\\n")
        return {{"booking": card}}

    def unbook(card, result):
        with Path("unbooked.txt").open("a") as file:
            file.write(result["booking"] + "\\n")
"""
SETTINGS = """
    [connectors.look]
    call = "bank.py:look"
    effect = "pure"
    [connectors.book]
    call = "bank.py:book"
    effect = "compensable"
    undo = "unbook"
    [connectors.unbook]
    call = "bank.py:unbook"
    effect = "idempotent"
"""


def cards(on_breach: str, gates: str, phases: str = "[before, during, after]") -> str:
    return f"""
        - id: cards
          category: pan_guard
          gates: {gates}
          with: {{phases: {phases}}}
          on_breach: {on_breach}
    """


@pytest.fixture
def desk(lab: Any) -> Any:
    lab.write("reader.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS + lab.model)
    return lab


def start(desk: Any, workflow: str, policies: str, status: str = "completed") -> Any:
    view = desk.run("reader.py:Reader", {}, workflow=workflow, policies=policies)
    assert view.status == status, view
    desk.verify()
    return view


def outcome(desk: Any, run: str) -> Any:
    return [event for event in desk.events(run, "outcome") if "after" in event.data][-1]


def test_what_a_tool_brings_back_is_redacted_before_the_agent_sees_it(desk: Any) -> None:
    view = start(desk, "tool", cards("redact", "[tool]"))
    assert CARD not in json.dumps(view.output)
    assert view.output["text"] == "card 4111 11** **** 1111"
    event = outcome(desk, view.run_id)
    assert event.data["after"]["verdict"]["outcome"] == 2
    with desk.service() as service:
        held = service.store.payload("default", event.payloads["received"])
    assert CARD.encode() in held, "what came in stands in the record, apart from what was handed on"


def test_what_a_tool_brings_back_is_kept_from_the_agent(desk: Any) -> None:
    view = start(desk, "tool", cards("deny", "[tool]"))
    assert view.output.startswith("denied: ")
    assert outcome(desk, view.run_id).data["rule"] == "cards"
    assert start(desk, "tool", cards("deny", "[tool]", "[before]")).output["text"] == f"card {CARD}"


def test_what_comes_back_can_end_the_run(desk: Any) -> None:
    view = start(desk, "tool", cards("terminate", "[tool]"), "terminated")
    assert view.rule == "cards"


def test_to_ask_people_afterwards_denies(desk: Any) -> None:
    assert start(desk, "tool", cards("require_approval", "[tool]", "[after]")).output.startswith("denied: ")


def test_a_warning_afterwards_is_on_record_and_changes_nothing(desk: Any) -> None:
    view = start(desk, "tool", cards("warn", "[tool]", "[after]"))
    assert view.output["text"] == f"card {CARD}"
    [hit] = outcome(desk, view.run_id).data["after"]["verdict"]["hits"]
    assert hit["rule"] == "cards"


def test_what_was_done_and_not_handed_on_can_still_be_undone(desk: Any) -> None:
    view = start(desk, "books", cards("redact", "[tool]", "[after]"))
    assert CARD not in json.dumps(view.output)
    with desk.service() as service:
        state = service.run(view.run_id)
    assert state.status == "completed"
    assert (desk.folder / "booked.txt").read_text() == CARD + "\n"


def test_what_a_kill_undoes_is_what_was_done_and_not_what_was_handed_on(desk: Any) -> None:
    run = desk.submit("reader.py:Reader", {}, workflow="waits", policies=cards("redact", "[tool]", "[after]"))
    assert desk.drive(run).status == "suspended"
    with desk.service() as service:
        service.kill("run", run, reason="stop", principal=desk.person, compensate=True)
    assert desk.drive(run).status == "killed"
    assert (desk.folder / "unbooked.txt").read_text() == CARD + "\n"


def test_an_answer_of_a_model_is_redacted(desk: Any, model_server: Callable[..., Any]) -> None:
    model_server([{"text": f"It is {CARD}."}])
    assert start(desk, "answer", cards("redact", "[llm]")).output == "It is 4111 11** **** 1111."


LONG = "word " * 400


@pytest.mark.parametrize("phases", ["[during]", "[after]", "[during, after]"])
def test_a_stream_is_redacted_before_it_is_heard(desk: Any, model_server: Callable[..., Any], phases: str) -> None:
    model_server([{"text": f"{LONG}The card is {CARD}, {LONG}", "chunk": 7}])
    view = start(desk, "stream", cards("redact", "[llm]", phases))
    assert view.output["end"] is None
    assert view.output["heard"] == f"{LONG}The card is 4111 11** **** 1111, {LONG}"


def test_a_stream_is_cut_and_the_record_says_how_far_it_got(desk: Any, model_server: Callable[..., Any]) -> None:
    import hashlib

    model_server([{"text": f"{LONG}The card is {CARD}, {LONG}", "chunk": 7}])
    view = start(desk, "stream", cards("deny", "[llm]", "[during]"))
    heard = view.output["heard"]
    assert view.output["end"].startswith("denied: ")
    assert heard
    assert LONG.startswith(heard)
    cut = outcome(desk, view.run_id).data["cut"]
    assert cut["bytes"] == len(heard)
    assert cut["sha256"] == hashlib.sha256(heard.encode()).hexdigest()


def test_an_output_is_redacted_and_what_was_returned_is_on_record(desk: Any) -> None:
    view = start(desk, "says", cards("redact", "[output]"))
    assert view.output == {"card": "4111 11** **** 1111", "fine": True}
    [event] = desk.events(view.run_id, "run.completed")
    with desk.service() as service:
        assert CARD.encode() in service.store.payload("default", event.payloads["returned"])
    assert start(desk, "says", cards("deny", "[output]"), "denied").rule == "cards"


def test_memory_and_files_keep_only_what_may_be_kept(desk: Any) -> None:
    view = start(desk, "keeps", cards("redact", "[memory, file]", "[before]"))
    assert view.output == [{"number": "4111 11** **** 1111"}, "the card is 4111 11** **** 1111"]
    assert start(desk, "keeps", cards("deny", "[file]"), "denied").rule == "cards"


def test_a_model_sees_tokens_and_the_agent_what_they_stand_for(desk: Any, model_server: Callable[..., Any]) -> None:
    tokens = "- {id: tokens, category: pseudonymise, gates: [llm], with: {types: [EMAIL_ADDRESS], phases: [before]}}"
    seen = []
    for _ in range(2):
        server = model_server(lambda request: Reply(text="Dear " + request.last.split()[2].rstrip(".")))
        view = start(desk, "writes_to", tokens)
        assert view.output == f"Dear {MAIL}"
        [request] = server.requests
        assert MAIL not in json.dumps(request.body)
        seen.append(json.dumps(request.body["messages"]))
    assert seen[0] == seen[1], "the same value of one tenant has the same token"
