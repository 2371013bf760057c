"""``grant``: grants of machines whose keys are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.base.limits import MAX_CHAIN
from meshnode.cli.commands.trust import FILE, Span, granting, node_of, told_of, write_new
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit

if TYPE_CHECKING:
    from meshnode.trust.chain import Standing


@click.group("grant")
def grant_group() -> None:
    """Make, show and install grants of machines whose keys are known.

    \b
    Example: meshnode grant issue ID --role web --out web.grant
    """


def _json(standing: Standing) -> dict[str, object]:
    return {
        "id": str(standing.id),
        "roles": sorted(standing.roles),
        "services": None if standing.services is None else list(standing.services),
        "grant": standing.grants[-1],
        "not_before": standing.not_before / 1000,
        "expires": standing.expires / 1000,
        "delegate": standing.delegation is not None,
        "renews": standing.delegation is not None and standing.delegation.renews,
    }


@grant_group.command("issue")
@click.argument("node")
@granting
@click.option("--delegate", is_flag=True, help="It may give these roles and services to others.")
@click.option(
    "--depth",
    type=click.IntRange(1, MAX_CHAIN - 1),
    help="How many may hand them on, one after the other; implies --delegate, which is 1.",
)
@click.option("--renews", is_flag=True, help="It renews grants of these roles by itself; implies --delegate.")
@click.option("--out", type=FILE, required=True, metavar="FILE", help="Where the grant is written.")
@home_option
@json_option
def issue_command(
    node: str,
    roles: tuple[str, ...],
    services: tuple[str, ...],
    lifetime: float,
    delegate: bool,
    depth: int | None,
    renews: bool,
    out: Path,
    home: Path,
    as_json: bool,
) -> None:
    """Make a grant for a node by its id; a grant is no secret.

    There: meshnode grant install FILE. It needs the mesh's key too (--mesh @FILE); a ticket has both.

    JSON: {"id", "roles", "services", "grant", "not_before", "expires", "delegate", "renews", "file"}

    \b
    Example: meshnode grant issue ID --role web --out web.grant
             meshnode grant issue ID --role web --renews --out renewer.grant
             meshnode grant issue ID --role web --depth 2 --out agent.grant
    """
    from time import time

    from meshnode.cli.authority import authority_secrets
    from meshnode.identity.node_id import NodeId
    from meshnode.trust.authority import pack_chain
    from meshnode.trust.chain import verify_chain
    from meshnode.trust.names import checked_roles, checked_services
    from meshnode.trust.operator import grant, issuer_of

    subject, wall = NodeId.parse(node), time()
    own = node_of(home, make=False) if (home / "key").exists() else None
    mesh, issuer = issuer_of(home, own, *authority_secrets(home))
    chain = grant(
        issuer,
        subject,
        roles=checked_roles(roles),
        services=checked_services(services),
        lifetime_s=lifetime,
        depth=depth or int(delegate or renews),
        renews=renews,
        wall=wall,
        entropy=os.urandom,
    )
    standing = verify_chain(chain, subject, mesh.authority, wall)
    write_new(out, pack_chain(chain))
    emit({**_json(standing), "file": str(out)}, as_json, f"grant {standing.grants[-1]} in {out}", *told_of(standing))


@grant_group.command("renew")
@click.argument("file", type=FILE)
@click.option("--lifetime", type=Span(), default="90d", show_default=True, help="How long the new one holds.")
@click.option("--out", type=FILE, required=True, metavar="FILE", help="Where the new grant is written.")
@home_option
@json_option
def renew_command(file: Path, lifetime: float, out: Path, home: Path, as_json: bool) -> None:
    """Make the same grant again for a later time; nodes that are connected to a renewer need none of this.

    JSON: {"id", "roles", "services", "grant", "not_before", "expires", "delegate", "renews", "file"}

    \b
    Example: meshnode grant renew web.grant --out web-2.grant
    """
    from time import time

    from meshnode.cli.authority import authority_secrets
    from meshnode.trust.authority import pack_chain
    from meshnode.trust.chain import verify_chain
    from meshnode.trust.operator import issuer_of, renewed

    wall = time()
    own = node_of(home, make=False) if (home / "key").exists() else None
    mesh, issuer = issuer_of(home, own, *authority_secrets(home))
    subject, chain = renewed(issuer, file, lifetime_s=lifetime, wall=wall, entropy=os.urandom)
    standing = verify_chain(chain, subject, mesh.authority, wall)
    write_new(out, pack_chain(chain))
    emit({**_json(standing), "file": str(out)}, as_json, f"grant {standing.grants[-1]} in {out}", *told_of(standing))


@grant_group.command("show")
@home_option
@json_option
def show_command(home: Path, as_json: bool) -> None:
    """Show the grant of this home's node.

    JSON: {"id", "roles", "services", "grant", "not_before", "expires", "delegate", "renews", "mesh"}

    \b
    Example: meshnode grant show
    """
    from time import time

    from meshnode.trust.chain import verify_chain
    from meshnode.trust.home_mesh import load_chain
    from meshnode.trust.operator import mesh_of

    mesh, node = mesh_of(home), node_of(home, make=False)
    standing = verify_chain(load_chain(home), node.id, mesh.authority, time())
    value = {**_json(standing), "mesh": mesh.name}
    emit(value, as_json, f"grant {standing.grants[-1]} of {node.id} in the mesh {mesh.name}", *told_of(standing))


@grant_group.command("install")
@click.argument("file", type=FILE)
@home_option
@json_option
def install_command(file: Path, home: Path, as_json: bool) -> None:
    """Take a grant that was made for this home's node; a running node shows it after its restart.

    JSON: {"id", "roles", "services", "grant", "not_before", "expires", "delegate", "renews"}

    \b
    Example: meshnode grant install web.grant
    """
    from time import time

    from meshnode.trust.operator import install

    standing = install(home, file, node_of(home, make=False).id, time())
    emit(_json(standing), as_json, f"grant {standing.grants[-1]}", *told_of(standing))
