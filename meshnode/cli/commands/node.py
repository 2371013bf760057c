"""Commands about the running node and its peers."""

from __future__ import annotations

from pathlib import Path

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import NumberRange, home_option, json_option
from meshnode.cli.output import emit, say

UNHEALTHY = 3
CHECK_TIMEOUT_S = 10.0


@click.command("status")
@click.option("--check", is_flag=True, help="Only say whether the node is well, by the exit code too.")
@home_option
@json_option
def status_command(check: bool, home: Path, as_json: bool) -> int:
    """Show the running node: endpoints, peers, services, counters.

    With --check it prints "ok", or what is wrong. Exit code 0 when the node is well, 1 when none runs or it does not
    answer, 3 when it runs and something is wrong with it: it cannot write its state, has no address, waits for a
    listen address, or reaches no node though it has seeds. Failures of services are no part of it.

    JSON: {"id", "name", "address", "endpoints", "seq", "peers", "nat", "engine", "post_quantum", "uptime_s", "exposes",
    "forwards", "degraded", "counters", ...}, with --check {"healthy", "problems"}

    \b
    Example: meshnode status --json
             meshnode status --check
    """
    from meshnode.cli.status_view import lines, problems
    from meshnode.daemon.requests.node import Status

    status = ask_one(home, Status(), CHECK_TIMEOUT_S if check else None)
    if not check:
        emit(status, as_json, *lines(status))
        return 0
    wrong = problems(status)
    emit({"healthy": not wrong, "problems": wrong}, as_json, *(wrong or ["ok"]))
    return UNHEALTHY if wrong else 0


@click.command("peers")
@click.argument("id", required=False)
@click.option("--history", is_flag=True, help="Also show every peer's path changes, with their reasons.")
@home_option
@json_option
def peers_command(id: str | None, history: bool, home: Path, as_json: bool) -> None:
    """List the live peers and the path in use.

    One line a peer: its name, path, address, round trip and the last path change. With an ID: that peer, every address
    that it may be at, and its path changes.

    JSON: {"id", "name", "path", "endpoint", "tunnel", "state", "rtt_ms", "key_exchange", "history", ...}, with an ID
    also "candidates"

    \b
    Example: meshnode peers
             meshnode peers --history
    """
    from meshnode.cli import path_view
    from meshnode.daemon.requests.node import Peer, Peers

    found = list(ask(home, Peers())) if id is None else [ask_one(home, Peer(id))]
    if as_json:
        for peer in found:
            emit(peer, True)
        return
    for line in path_view.table(found, history=history or id is not None):
        say(line)
    if not found:
        say("no live peers; `meshnode ping ID` makes one")


@click.command("resolve")
@click.argument("id")
@home_option
@json_option
def resolve_command(id: str, home: Path, as_json: bool) -> None:
    """Find the signed record of a node, and say which source had it.

    JSON: {"record", "source", "ms"}

    \b
    Example: meshnode resolve ID --json
    """
    from meshnode.daemon.requests.node import Resolve

    found = ask_one(home, Resolve(id))
    record = found["record"]
    head = f"{record['id']}  (from {found['source']} in {found['ms']:.1f} ms)"
    emit(found, as_json, head, *(f"  {endpoint}" for endpoint in record["endpoints"]))


@click.command("ping")
@click.argument("id")
@click.option("-c", "--count", default=4, show_default=True, type=click.IntRange(1, 100_000), help="How many echoes.")
@click.option("-i", "--interval", default=1.0, show_default=True, type=NumberRange(0.01, 3600), help="Seconds between.")
@home_option
@json_option
def ping_command(id: str, count: int, interval: float, home: Path, as_json: bool) -> int:
    """Reach a node by its key or its name, and time the way.

    One line an echo, with the path it took; when the path changes, a line says from where to where, and why. An echo is
    lost after 2 seconds, or three round trips where they take longer. Exit code 1 when all echoes are lost.

    JSON: {"seq", "rtt_ms", "path", "endpoint", "tunnel", "change"}; rtt_ms of a lost echo is null

    \b
    Example: meshnode ping ID -c 3
    """
    from meshnode.cli.path_view import PingView
    from meshnode.daemon.requests.node import Ping

    view = PingView()
    try:
        for echo in ask(home, Ping(id, count, interval)):
            for line in view.lines(echo):
                if not as_json:
                    say(line)
            if as_json:
                emit(echo, True)
    finally:  # after Ctrl-C too
        if not as_json and view.sent:
            say(view.summary())
    return 0 if view.answered else 1


@click.command("rebind")
@click.argument("address", required=False, metavar="[ADDR:PORT]")
@home_option
@json_option
def rebind_command(address: str | None, home: Path, as_json: bool) -> None:
    """Move the node's socket to another local address; streams go on.

    It is what a change of network does. Without an address: the same host, another port.

    JSON: {"listen"}

    \b
    Example: meshnode rebind 127.0.0.2:0
    """
    from meshnode.daemon.requests.node import Rebind

    result = ask_one(home, Rebind(address))
    emit(result, as_json, f"listening on {result['listen']}")
