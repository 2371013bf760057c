"""Commands about services: those of this node, its forwards, and those of the mesh."""

from __future__ import annotations

from pathlib import Path

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for text in values:
        if not text.partition("=")[0] or "=" not in text:
            raise click.BadParameter(f"{text!r} is not KEY=TEXT", ctx, param)
    return values


@click.command("expose")
@click.argument("name")
@click.argument("target", metavar="TARGET")
@click.option("--allow", multiple=True, metavar="any|ID|role:NAME", help="A node that may use it, or any; repeatable.")
@click.option("--announce/--no-announce", default=None, help="Tell the mesh of it  [default: when any node is allowed]")
@click.option("--meta", multiple=True, metavar="KEY=TEXT", callback=_pairs, help="Announced with it; repeatable.")
@home_option
@json_option
def expose_command(
    name: str,
    target: str,
    allow: tuple[str, ...],
    announce: bool | None,
    meta: tuple[str, ...],
    home: Path,
    as_json: bool,
) -> None:
    """Offer a local TCP service to other nodes, under a name.

    TARGET is PORT, HOST:PORT or tcp://HOST:PORT. Kept over restarts. No node may use it unless allowed.

    The mesh is told of a service that any node may use, so that it is found by its name alone; several nodes may offer
    the same name. Every member can read that, whichever nodes are allowed: --no-announce keeps a service private.

    JSON: {"name", "target", "allow"}

    \b
    Example: meshnode expose web tcp://127.0.0.1:8000 --allow any
    """
    from meshnode.daemon.requests.services import Expose

    pairs = dict(text.partition("=")[::2] for text in meta)
    result = ask_one(home, Expose(name, target, allow, announce, pairs))
    emit(result, as_json, f"{name} -> {result['target']} for {', '.join(allow) or 'no node'}")
    if not allow and not as_json:
        click.echo("hint: no node is allowed yet; add --allow any or --allow ID", err=True)


@click.command("unexpose")
@click.argument("name")
@home_option
@json_option
def unexpose_command(name: str, home: Path, as_json: bool) -> None:
    """Withdraw an exposed service.

    JSON: {"name"}

    \b
    Example: meshnode unexpose web
    """
    from meshnode.daemon.requests.services import Unexpose

    emit(ask_one(home, Unexpose(name)), as_json, f"{name} is withdrawn")


@click.command("forward")
@click.argument("listen")
@click.argument("to", metavar="[NODE/]SERVICE")
@click.option("--sticky", is_flag=True, help="SERVICE alone: stay with one instance as long as it works.")
@home_option
@json_option
def forward_command(listen: str, to: str, sticky: bool, home: Path, as_json: bool) -> None:
    """Listen here for a TCP service of another node.

    LISTEN is PORT or HOST:PORT. Each TCP connection goes to the service and survives moves of either node.
    NODE/SERVICE is the service of one node, named by its id or its name. SERVICE alone is any instance that works, near
    and idle ones first; when the one in use dies, its connections end within a second, and new ones go to the next.

    JSON: {"listen", "to"}

    \b
    Example: meshnode forward 8080 ID/web
    Example: meshnode forward 5432 db
    """
    from meshnode.daemon.requests.services import Forward

    result = ask_one(home, Forward(listen, to, sticky))
    emit(result, as_json, f"{result['listen']} -> {result['to']}")
    if not as_json and not result["listen"].startswith(("127.", "[::1]")):
        port = result["listen"].rpartition(":")[2]
        click.echo(f"hint: every host that reaches this one can use it; 127.0.0.1:{port} keeps it here", err=True)


@click.command("unforward")
@click.argument("listen")
@home_option
@json_option
def unforward_command(listen: str, home: Path, as_json: bool) -> None:
    """Stop a forward, named by its address or its port.

    JSON: {"listen"}

    \b
    Example: meshnode unforward 8080
    """
    from meshnode.daemon.requests.services import Unforward

    result = ask_one(home, Unforward(listen))
    emit(result, as_json, f"{result['listen']} is closed")


@click.command("services")
@click.argument("name", required=False)
@home_option
@json_option
def services_command(name: str | None, home: Path, as_json: bool) -> int:
    """List what the nodes of the mesh offer, one instance a line.

    A service is listed when it is announced: one that any node is allowed to use, unless it was exposed with
    --no-announce. The state is up, failing or suspect, or what this node has met there (silent, failed, refused). Exit
    code 1 when no node offers NAME.

    JSON: {"service", "id", "name", "state", "load", "restricted", "rtt_ms", "meta"}

    \b
    Example: meshnode services db --json
    """
    from meshnode.daemon.requests.services import Services

    found = 0
    for item in ask(home, Services(name)):
        found += 1
        rtt = f"{item['rtt_ms']:.1f} ms" if item["rtt_ms"] is not None else "-"
        meta = " ".join(f"{key}={text}" for key, text in item["meta"].items())
        node = f"{item['id'][:12]} {item['name']}".rstrip()
        text = f"{item['service']:16} {item['state']:8} {node:24} load {item['load']:3}  {rtt:>9}  {meta}".rstrip()
        emit(item, as_json, text)
    if not found and not as_json:
        click.echo(
            f"no node offers {name!r}; here: meshnode expose {name} PORT"
            if name
            else "no service is announced; `meshnode expose` offers one"
        )
    return 0 if found or name is None else 1
