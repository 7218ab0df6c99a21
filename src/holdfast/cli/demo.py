"""``holdfast demo``: the main job, guided, through the public command line alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import opening, output


def demo(
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Empty folder to work in; it is kept. Default: a new one.")
    ] = None,
    json: opening.Json = False,
) -> None:
    """Reconcile 240 bank lines with governed agents: no key and no server needed, under a minute."""
    from holdfast.cli.demo_shell import Shell, environment, model, prepare
    from holdfast.cli.demo_story import Story

    started = time.monotonic()
    place = (folder or Path(tempfile.mkdtemp(prefix="holdfast-demo-"))).absolute()
    prepare(place)

    def echo(text: str) -> None:
        if not json:
            output.say(f"  $ {text}", "dim")

    with model(environment()) as (environ, words):
        story = Story(Shell(place, environ, echo), quiet=json)
        story.tell(f"The model is {words}.")
        story.tell(f"Everything is in {place}")
        facts = story.all()
    facts["seconds"] = round(time.monotonic() - started, 1)
    facts["folder"] = str(place)
    if json:
        output.emit(facts)
        return
    output.say()
    output.say(f"Done in {facts['seconds']:.0f} s. Try next:", "bold")
    output.say(f"  cd {place}")
    output.say("  holdfast runs list                    # every run, and holdfast runs tail RUN for its events")
    output.say("  holdfast policy list                  # what was in force; edit policies/finance.yaml and run again")
    output.say("  holdfast audit verify                 # the record, checked once more")
    output.say("  holdfast run agent.py:ReconciliationAgent --input @party.json")
