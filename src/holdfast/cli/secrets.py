"""``holdfast secrets``: credentials that are added on the way out and that no agent ever sees."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from holdfast.cli import opening, output
from holdfast.errors import UsageError

app = typer.Typer(help="Keep credentials that agents use and never see.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME")]
Tenant = Annotated[str, typer.Option(help="Whose it is.")]
By = Annotated[
    str, typer.Option("--by", metavar="NAME", help="Act as this principal; HOLDFAST_PRINCIPAL_TOKEN proves it.")
]


@app.command("set")
def set_(
    name: Name,
    host: Annotated[str, typer.Option(help="Where it may go: api.example.com, *.example.com, with :port if need be.")],
    inject: Annotated[
        str,
        typer.Option("--as", metavar="HOW", help="header:NAME, query:NAME, basic, bearer, sigv4, oauth or postgres."),
    ],
    value: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only with this method; may be given again.")] = None,
    path: Annotated[str, typer.Option(help="Only to this path; * stands for anything.")] = "",
    agent: Annotated[str, typer.Option(help="Only for this agent; * stands for anything.")] = "",
    tenant: Tenant = "default",
    by: By = "",
    json: opening.Json = False,
) -> None:
    """Set a secret, or rotate it: the value comes on stdin, and holds from the next request on."""
    if value is not None:
        raise UsageError(
            "a secret's value is never an argument: others can read those. Give it on stdin, and change the one that "
            "was just shown"
        )
    from holdfast.egress.bindings import binding, check_name

    bound = binding(inject, host, methods=tuple(method or ()), path=path, agent=agent)
    check_name(name)
    principal = opening.principal(by)
    given = _read(name)
    with opening.service() as service:
        version = service.set_secret(tenant, name, bound, given, principal=principal)
    if json:
        output.emit({"name": name, "tenant": tenant, "version": version})
    else:
        output.say(f"set {name} for {bound.host}; in force from the next request on")


@app.command("list")
def list_(tenant: Tenant = "default", json: opening.Json = False) -> None:
    """List secrets: what they are bound to, never their values."""
    from holdfast.egress.bindings import shown

    with opening.service() as service:
        secrets = service.secrets(tenant)
    if json:
        found: list[dict[str, Any]] = [
            {
                "name": one.name,
                "tenant": one.tenant,
                "version": one.version,
                **shown(one.binding),
                "set_at": output.when(one.set_at),
            }
            for one in secrets
        ]
        output.emit({"secrets": found})
        return
    rows = [
        (
            one.name,
            one.binding.inject,
            one.binding.host,
            ",".join(one.binding.methods) or "any",
            one.binding.path or "any",
            one.binding.agent or "any",
            output.shown_when(one.set_at),
        )
        for one in secrets
    ]
    output.table(("name", "as", "host", "method", "path", "agent", "set"), rows, empty="No secrets yet.")


@app.command()
def remove(name: Name, tenant: Tenant = "default", by: By = "", json: opening.Json = False) -> None:
    """Destroy a secret; from the next request on it is not sent."""
    principal = opening.principal(by)
    with opening.service() as service:
        service.remove_secret(tenant, name, principal=principal)
    if json:
        output.emit({"name": name, "tenant": tenant, "removed": True})
    else:
        output.say(f"removed {name}")


def _read(name: str) -> bytes:
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"{name}: ").encode()
    return sys.stdin.buffer.read(1 << 16)
