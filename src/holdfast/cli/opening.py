"""What every command needs first: settings, the home, the service, and who asks."""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast import config, values
from holdfast.errors import PayloadError, UsageError
from holdfast.node.views import Principal

if TYPE_CHECKING:
    from holdfast.node.service import Service

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
As = Annotated[
    str, typer.Option("--as", metavar="NAME", help="Act as this principal; HOLDFAST_PRINCIPAL_TOKEN proves it.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded.")]


@contextmanager
def service() -> Iterator[Service]:
    """The service on the home, for one command."""
    from holdfast.node.service import Service

    home = config.home_folder()
    with Service.open(config.load(home), home) as opened:
        yield opened


def principal(name: str = "") -> Principal:
    """Who asks: the user of this process, or ``name`` when its token is in the environment.

    Raises:
        UsageError: the name is unknown or its token does not match.
    """
    settings = config.load()
    if not name:
        uid = os.getuid()
        known = settings.principals.get(f"uid:{uid}", config.PrincipalSettings())
        return Principal(name=f"uid:{uid}", auth=f"peer-uid:{uid}", roles=known.roles)
    known_as = settings.principals.get(name)
    if known_as is None or not known_as.token_sha256:
        raise UsageError(
            f"{name} is not a principal with a token; add [principals.{name}] with token_sha256 to {config.FILE}"
        )
    token = os.environ.get("HOLDFAST_PRINCIPAL_TOKEN", "")
    if not token:
        raise UsageError(f"--as {name} needs a proof; set HOLDFAST_PRINCIPAL_TOKEN to the token of {name}")
    if not hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), known_as.token_sha256):
        raise UsageError(f"HOLDFAST_PRINCIPAL_TOKEN is not the token of {name}; its SHA-256 differs from token_sha256")
    return Principal(name=name, auth="token", roles=known_as.roles)


def json_argument(text: str, option: str) -> bytes:
    """Canonical bytes of an option that is JSON, ``@FILE`` or ``@-`` for stdin.

    Raises:
        UsageError: the file cannot be read, or it is not JSON.
    """
    source = option
    if text.startswith("@"):
        source = f"{option} {text}"
        text = _read(text[1:], source)
    try:
        value: Any = values.load(text.encode())
        return values.dump(value, source)
    except (PayloadError, UnicodeEncodeError) as error:
        words = str(error).removeprefix("a recorded value is not JSON: ")
        raise UsageError(f'{source} is not JSON ({words}); quote it as in {option} \'{{"key": "value"}}\'') from None


def _read(name: str, source: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{source} cannot be read: {reason}; give a file of JSON, or the JSON itself") from None
