"""``holdfast tenant``: whose work it is, and in which region."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.cli import opening, output
from holdfast.errors import UsageError
from holdfast.node.views import TenantView

app = typer.Typer(help="Create and list tenants.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def create(
    name: Name,
    region: Annotated[str, typer.Option(help="Where its work and data stay, as us-east or eu-west.")],
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Create a tenant. Its region never changes."""
    with opening.service() as service:
        service.create_tenant(name, region, principal=opening.principal(as_))
    if json:
        output.emit({"name": name, "region": region})
    else:
        output.say(f"created {name} in {region}")


@app.command("list")
def list_(json: opening.Json = False) -> None:
    """List tenants."""
    with opening.service() as service:
        tenants = service.tenants()
    if json:
        output.emit({"tenants": [_object(tenant) for tenant in tenants]})
        return
    rows = [(tenant.name, tenant.region, output.shown_when(tenant.created_at)) for tenant in tenants]
    output.table(("name", "region", "created"), rows, empty="No tenants yet.")


@app.command()
def show(name: Name, json: opening.Json = False) -> None:
    """Show a tenant."""
    with opening.service() as service:
        found = {tenant.name: tenant for tenant in service.tenants()}
    if name not in found:
        raise UsageError(f"there is no tenant {name}; create it with: holdfast tenant create {name} --region REGION")
    if json:
        output.emit(_object(found[name]))
    else:
        output.say(f"{name}  {found[name].region}  created {output.shown_when(found[name].created_at)}")


def _object(tenant: TenantView) -> dict[str, Any]:
    return {"name": tenant.name, "region": tenant.region, "created_at": output.when(tenant.created_at)}
