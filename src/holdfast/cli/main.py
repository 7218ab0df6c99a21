"""The command line's door: its nouns, and how every error leaves it.

Modules of nouns import what is heavy inside their commands, so that ``holdfast --help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer

from holdfast import config
from holdfast.cli import (
    approvals,
    audit,
    demo,
    doctor,
    exits,
    kill,
    output,
    policy,
    run,
    runs,
    sandbox,
    secrets,
    serve,
    tenant,
)
from holdfast.errors import HoldfastError

app = typer.Typer(
    name="holdfast",
    help="A governed execution runtime for AI agents: decided before it happens, recorded as it happens.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
for _name, _noun in (
    ("runs", runs),
    ("approvals", approvals),
    ("kill", kill),
    ("tenant", tenant),
    ("policy", policy),
    ("audit", audit),
    ("sandbox", sandbox),
    ("secrets", secrets),
):
    app.add_typer(_noun.app, name=_name, rich_help_panel=None)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)

UNUSABLE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EROFS: "choose a writable folder with HOLDFAST_HOME",
    errno.EACCES: "make it accessible, or choose another folder with HOLDFAST_HOME",
    errno.EPERM: "make it accessible, or choose another folder with HOLDFAST_HOME",
    errno.EIO: "check the disk",
}
"""Errors of the system that mean that the disk cannot be used, with the cure."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A governed execution runtime for AI agents: decided before it happens, recorded as it happens."""


def main(args: list[str] | None = None) -> int:
    """Run a command line; gives the exit status. No exception leaves it."""
    argv = sys.argv[1:] if args is None else args
    try:
        status = typer.main.get_command(app).main(argv, prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
    except HoldfastError as error:
        return _refuse(str(error), error.code, error.exit_status, argv)
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader went away: what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    except Exception as error:  # noqa: BLE001 - the last door: every error becomes one line and a status
        return _last(error, argv)
    return status if isinstance(status, int) else exits.OK


def _last(error: Exception, argv: list[str]) -> int:
    if callable(words := getattr(error, "format_message", None)):
        return _refuse(f"{words()} (see: {_help(error)})", "usage", exits.USAGE, argv)
    if os.environ.get("HOLDFAST_DEBUG") == "1":
        # Not for every command's start.
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        place = error.filename or config.home_folder()
        return _refuse(f"{place}: {error.strerror}; {UNUSABLE[error.errno]}", "store", exits.STORE, argv)
    what = f"something that Holdfast did not expect ({type(error).__name__})"
    return _refuse(f"{what}; {_log(error)}", "unexpected", exits.FAILED, argv)


def _help(error: Exception) -> str:
    context: Any = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'holdfast'} --help"


def _log(error: Exception) -> str:
    """Write where it happened beside the home. The message stays out: it may hold what must not be in a log."""
    import traceback

    path = config.home_folder() / "holdfast.log"
    frames = "".join(traceback.format_tb(error.__traceback__))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{type(error).__module__}.{type(error).__qualname__}\n{frames}\n")
    except OSError:
        return "see the traceback with HOLDFAST_DEBUG=1"
    return f"the place is in {path}; see the whole traceback with HOLDFAST_DEBUG=1"


def _refuse(message: str, code: str, status: int, argv: list[str]) -> int:
    output.complain(message)
    if "--json" in argv:
        output.emit({"error": message, "code": code})
    return status
