"""``holdfast serve``: a node."""

from __future__ import annotations

from holdfast.cli import opening, output


def serve(json: opening.Json = False) -> None:
    """Run a node on this home until interrupted: it drives whatever is submitted or becomes ready."""

    def ready(*_: object) -> None:
        if json:
            output.emit({"serving": True})
        else:
            output.say("serving; stop with Control-C")

    with opening.service() as service:
        service.serve(ready=ready)
