"""Commands that ask the running node of a home over its control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit
from meshnode.daemon.client import call


def _only(home: Path, method: str, **arguments: Any) -> dict[str, Any]:
    return next(iter(list(call(home, method, **arguments))))


@click.command("status")
@home_option
@json_option
def status_command(home: Path, as_json: bool) -> None:
    """Show the running node: endpoints, peers, services, counters.

    \b
    Example: meshnode status --json
    """
    status = _only(home, "status")
    lines = [
        f"{status['id']}",
        f"  address   {status['address']}",
        f"  endpoints {', '.join(status['endpoints']) or 'none'}",
        f"  peers     {status['peers']} live, {status['contacts']} known",
        f"  up        {status['uptime_s']:.0f} s, record {status['seq']}",
    ]
    lines += [
        f"  exposed   {e['name']} -> {e['target']} for {', '.join(e['allow']) or 'nobody'}" for e in status["exposes"]
    ]
    lines += [f"  forwarded {f['listen']} -> {f['to']}" for f in status["forwards"]]
    emit(status, as_json, "\n".join(lines))


@click.command("peers")
@click.argument("id", required=False)
@click.option("--history", is_flag=True, help="Also show every peer's path changes, with their reasons.")
@home_option
@json_option
def peers_command(id: str | None, history: bool, home: Path, as_json: bool) -> None:
    """List the live peers, one a line: path, address, round trip and the last path change.

    With an ID: that peer, every address that it may be at, and its path changes.

    \b
    Example: meshnode peers
             meshnode peers --history
    """
    from meshnode.cli import peers as view

    found = list(call(home, "peers")) if id is None else [_only(home, "peer", id=id)]
    if as_json:
        for peer in found:
            emit(peer, True, "")
        return
    for line in view.table(found, history=history or id is not None):
        click.echo(line)
    if not found:
        click.echo("no live peers; `meshnode ping ID` makes one")


@click.command("resolve")
@click.argument("id")
@home_option
@json_option
def resolve_command(id: str, home: Path, as_json: bool) -> None:
    """Find the signed record of a node (an id, or a name) and say which source had it.

    \b
    Example: meshnode resolve ID --json
    """
    found = _only(home, "resolve", id=id)
    record = found["record"]
    text = "\n".join(
        [f"{record['id']}  (from {found['source']} in {found['ms']:.1f} ms)"] + [f"  {e}" for e in record["endpoints"]]
    )
    emit(found, as_json, text)


@click.command("ping")
@click.argument("id")
@click.option("-c", "--count", default=4, show_default=True, type=click.IntRange(1, 100_000), help="How many echoes.")
@click.option(
    "-i", "--interval", default=1.0, show_default=True, type=click.FloatRange(0.01, 3600), help="Seconds between."
)
@home_option
@json_option
def ping_command(id: str, count: int, interval: float, home: Path, as_json: bool) -> int:
    """Reach a node by its key or its name; one line an echo, with the path it took. Exit code 1 when all are lost.

    When the path changes on the way, a line says from where to where, and why.

    \b
    Example: meshnode ping ID -c 3
    """
    from meshnode.cli.peers import PingView

    view = PingView()
    try:
        for echo in call(home, "ping", id=id, count=count, interval=interval):
            for line in view.lines(echo):
                if not as_json:
                    click.echo(line)
            if as_json:
                emit(echo, True, "")
    finally:  # after Ctrl-C too
        if not as_json and view.sent:
            click.echo(view.summary())
    return 0 if view.answered else 1


@click.command("expose")
@click.argument("name")
@click.argument("target", metavar="tcp://HOST:PORT")
@click.option("--allow", multiple=True, metavar="any|ID|role:NAME", help="Who may use it; nobody unless named.")
@click.option("--announce/--no-announce", default=None, help="Tell the mesh of it  [default: when somebody is allowed]")
@click.option("--meta", multiple=True, metavar="KEY=TEXT", help="Said with the announcement; repeatable.")
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
    """Offer a local TCP service under a name; kept over restarts. Nobody may use it unless allowed.

    The mesh is told of a service that somebody may use, so that it is found by its name alone; several nodes may offer
    the same name. Every member can read that, whoever is allowed: --no-announce keeps a service private.

    \b
    Example: meshnode expose web tcp://127.0.0.1:8000 --allow any
    """
    pairs = dict(text.partition("=")[::2] for text in meta)
    result = _only(home, "expose", name=name, target=target, allow=list(allow), announce=announce, meta=pairs)
    emit(result, as_json, f"{name} -> {target} for {', '.join(allow) or 'nobody'}")
    if not allow and not as_json:
        click.echo("hint: nobody is allowed yet; add --allow any or --allow ID", err=True)


@click.command("unexpose")
@click.argument("name")
@home_option
@json_option
def unexpose_command(name: str, home: Path, as_json: bool) -> None:
    """Withdraw an exposed service.

    \b
    Example: meshnode unexpose web
    """
    emit(_only(home, "unexpose", name=name), as_json, f"{name} is withdrawn")


@click.command("forward")
@click.argument("listen")
@click.argument("to", metavar="[NODE/]SERVICE")
@click.option("--sticky", is_flag=True, help="SERVICE alone: stay with one instance as long as it works.")
@home_option
@json_option
def forward_command(listen: str, to: str, sticky: bool, home: Path, as_json: bool) -> None:
    """Listen here; each TCP connection goes to a service of another node and survives moves of either.

    NODE/SERVICE is the service of one node, named by its id or its name. SERVICE alone is any instance that works, near
    and idle ones first; when the one in use dies, its connections end within a second, and new ones go to the next.

    \b
    Example: meshnode forward 8080 ID/web
    Example: meshnode forward 5432 db
    """
    result = _only(home, "forward", listen=listen, to=to, sticky=sticky)
    emit(result, as_json, f"{result['listen']} -> {to}")


@click.command("unforward")
@click.argument("listen")
@home_option
@json_option
def unforward_command(listen: str, home: Path, as_json: bool) -> None:
    """Stop a forward, named by its address or its port.

    \b
    Example: meshnode unforward 8080
    """
    result = _only(home, "unforward", listen=listen)
    emit(result, as_json, f"{result['listen']} is closed")


@click.command("rebind")
@click.argument("address", required=False, metavar="[ADDR:PORT]")
@home_option
@json_option
def rebind_command(address: str | None, home: Path, as_json: bool) -> None:
    """Move the node's socket to another local address, as a change of network would; streams go on.

    \b
    Example: meshnode rebind 127.0.0.2:0
    """
    result = _only(home, "rebind", address=address)
    emit(result, as_json, f"listening on {result['listen']}")
