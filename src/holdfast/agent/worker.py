"""The program in the boundary: says Ready, loads the author's code, runs one workflow, says Done or Failed, ends.

Started as ``python -m holdfast.agent.worker`` with the channel's descriptor in ``HOLDFAST_CHANNEL``. With
``--ahead ROOT TARGET`` there is no run yet: the code is loaded first, and Ready says that it is.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from holdfast.agent import quick as quick

# isort: split
from holdfast import wire
from holdfast.agent import inputs
from holdfast.agent.channel import BROKEN, Channel, end_process, from_environment
from holdfast.agent.context import Base, Context
from holdfast.agent.definition import Definition, choose_workflow, inspect_class
from holdfast.agent.faults import told
from holdfast.agent.load import load_target, trace_of
from holdfast.agent.log import Printed, as_text
from holdfast.agent.plan import plan_of
from holdfast.agent.private import become_private
from holdfast.agent.scope import Scope, current, guard
from holdfast.errors import HoldfastError, RunError, UsageError
from holdfast.values import dump, load

RUN_ID = "HOLDFAST_RUN_ID"
Ahead = dict[tuple[str, str], object]
"""What was loaded before there was a run, by root and target."""


def main() -> NoReturn:
    """Run one workflow to its end; the process ends with it."""
    try:
        become_private()
        channel = from_environment()
    except (OSError, UsageError) as error:
        end_process(str(error), BROKEN)
    printed = (Printed(channel, "stdout"), Printed(channel, "stderr"))
    texts = sys.stdout, sys.stderr = tuple(map(as_text, printed))
    current.set(Scope(0))
    ahead = _load_ahead(sys.argv[1:])
    channel.send(wire.Ready(wire.VERSION, os.getpid(), "{}.{}.{}".format(*sys.version_info[:3])))
    begin = channel.begin()
    os.environ[RUN_ID] = begin.run
    Printed.release(channel)
    _find_way_out(begin)
    last: wire.Done | wire.Failed | None = None
    data = b""
    try:
        data = dump(_run(channel, begin, ahead), "what the workflow returned")
    except BaseException as error:  # noqa: BLE001 - whatever left the author's code, the node is told
        last = _failed(error, begin.root)
    for text, raw in zip(texts, printed, strict=True):
        text.flush()
        raw.finish()
    if last is None:
        channel.post(wire.Done, data)
    else:
        channel.send(last)
    # No atexit, no waiting for threads that the author left behind: the boundary ends with this process.
    os._exit(0 if last is None else 1)


def _load_ahead(arguments: list[str]) -> Ahead:
    """Load the code that a run will be of. What it prints is kept for that run."""
    if arguments[:1] != ["--ahead"]:
        return {}
    # Whatever else the first run needs, so that it need not load it either.
    from holdfast.agent import egress as egress
    from holdfast.agent import relay as relay

    Printed.kept = []
    _, root, target = arguments
    del sys.argv[1:]
    try:
        return {(root, target): load_target(root, target)}
    except UsageError as error:
        # Nobody is there to be told. A worker that is started for a run loads it again, and says what is wrong.
        end_process(str(error), BROKEN)


def _find_way_out(begin: wire.Begin) -> None:
    """Relay connections of any program inside to the egress proxy, where this boundary has a loopback of its own."""
    if not begin.settings.get("relay"):
        return
    from holdfast.agent import clients, egress, relay

    authority = begin.settings.get("authority", "")
    path = os.path.join(os.environ.get("HOME", os.getcwd()), ".holdfast-authority.pem") if authority else ""
    if path:
        with open(path, "w") as file:
            file.write(authority)
    relay.tell(relay.start(egress.way()), path)
    clients.teach()


def _run(channel: Channel, begin: wire.Begin, ahead: Ahead) -> Any:
    cls, definition, workflow = _load(begin, ahead)
    attribute = definition.workflows[workflow]
    guard(cls)
    agent = cls()
    channel.send(wire.Loaded(definition.name, workflow, definition.tools))
    method = getattr(agent, attribute)
    plan = plan_of(method)
    ctx = Context(
        channel,
        agent=agent,
        definition=definition,
        run_id=begin.run,
        tenant=begin.tenant,
        input=inputs.wrap(load(begin.input.data) if begin.input.data else None),
    )
    if begin.settings.get("mode") == "compensate":
        return ctx.compensate()
    face: Base = ctx
    if plan.is_async:
        from holdfast.agent.aio import AsyncContext

        face = AsyncContext.beside(ctx)
    return ctx._finish(plan.invoke(method, face, (), {}))


def _load(begin: wire.Begin, ahead: Ahead) -> tuple[type, Definition, str]:
    place = begin.root, begin.target
    cls = ahead[place] if place in ahead else load_target(*place)
    definition = inspect_class(cls)
    assert isinstance(cls, type)
    return cls, definition, choose_workflow(definition, begin.workflow)


def _failed(error: BaseException, root: str) -> wire.Failed:
    if isinstance(error, SystemExit):
        error = _ended(error, f"the workflow called sys.exit({error.code!r}); return from it instead")
    elif isinstance(error, KeyboardInterrupt):
        error = _ended(error, "the workflow was interrupted (KeyboardInterrupt)")
    name, message, code, rule = told(error)
    return wire.Failed(name, message, trace_of(error, root), code, rule)


def _ended(error: BaseException, message: str) -> HoldfastError:
    return RunError(message).with_traceback(error.__traceback__)


if __name__ == "__main__":
    main()
