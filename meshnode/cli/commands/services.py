"""Commands about services: those of this node, its forwards, and those of the mesh."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import NumberRange, home_option, json_option
from meshnode.cli.output import emit, fail, say
from meshnode.errors import NotFound


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for text in values:
        if not text.partition("=")[0] or "=" not in text:
            raise click.BadParameter(f"{text!r} is not KEY=TEXT", ctx, param)
    return values


def _whole_each(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_whole(ctx, param, text) for text in texts)


def _whole(ctx: click.Context, param: click.Parameter, text: str) -> str:
    """Return a place with the path of a Unix socket from the root: the node runs in another folder."""
    scheme, mark, rest = text.partition("unix:")
    if not mark or scheme not in ("", "http+"):
        return text
    from meshnode.base.files import without_tilde

    path = without_tilde(rest.removeprefix("//"))
    return f"{scheme}unix:{Path.cwd() / path}" if str(path) != "." else text


@click.command("expose")
@click.argument("name")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, callback=_whole_each)
@click.option(
    "--allow",
    multiple=True,
    metavar="any|ID|NAME",
    help="A node that may use it, by its id or name, or any; repeatable.",
)
@click.option("--announce/--no-announce", default=None, help="Tell the mesh of it  [default: when any node is allowed]")
@click.option("--meta", multiple=True, metavar="KEY=TEXT", callback=_pairs, help="Announced with it; repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Connections at once; others wait  [default: 1024]")
@click.option(
    "--health",
    default="auto",
    metavar="CHECK",
    help="How targets are checked: connect, http:/PATH or none  [default: whether they listen, on this host]",
)
@click.option(
    "--rate",
    multiple=True,
    metavar="N|BYTES",
    help="What one caller may have a second: 20 connections, 5MB; repeatable.",
)
@click.option("--proxy-protocol", is_flag=True, help="Tell targets by the PROXY protocol, version 2, which node calls.")
@home_option
@json_option
def expose_command(
    name: str,
    targets: tuple[str, ...],
    allow: tuple[str, ...],
    announce: bool | None,
    meta: tuple[str, ...],
    limit: int | None,
    health: str,
    rate: tuple[str, ...],
    proxy_protocol: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Offer a local service to other nodes, under a name.

    TARGET is PORT, HOST:PORT, tcp://HOST:PORT, unix:PATH or udp://HOST:PORT. Kept over restarts. No node may use it
    unless allowed.
    With http://HOST:PORT or http+unix:PATH requests are read, and passed on with the headers Meshnode-Id, Meshnode-Name
    and Meshnode-Roles of the caller, which it cannot forge.

    Of several targets each connection goes to one that works, that with the fewest connections. HOST:8000-8010 is a
    service a port: NAME-8000 and so on.

    A target that fails is found within 2 s by --health: connect makes a connection to it each second, http:/PATH wants
    an answer of status 200 to 399; without it the kernel is asked whether a program of this host listens, and other
    hosts are watched only when callers find them failing. When no target works, the mesh is told that the service
    fails, and callers by its name go to other nodes.

    The mesh is told of a service that any node may use, so that it is found by its name alone; several nodes may offer
    the same name. Every member can read that, whichever nodes are allowed: --no-announce keeps a service private.

    --rate 20 refuses what one caller opens beyond 20 connections a second (requests of an HTTP service, by status 429),
    --rate 5MB has its bytes wait, each way on its own.

    A connection over the limit waits for a place, 10 s at most, and then finds the service unavailable. A service that
    hangs takes no place of another.

    JSON: {"name", "target", "allow"}, of a range of ports also "names"

    \b
    Example: meshnode expose web tcp://127.0.0.1:8000 --allow any
             meshnode expose api 8001 8002 --health http:/healthz --allow any
             meshnode expose db unix:/run/postgresql/.s.PGSQL.5432 --allow laptop
    """
    from meshnode.daemon.requests.services import Expose

    pairs = dict(text.partition("=")[::2] for text in meta)
    asked = Expose(name, targets[0], allow, announce, pairs, limit, targets[1:], health, proxy_protocol, rate)
    result = ask_one(home, asked)
    emit(result, as_json, f"{name} -> {result['target']} for {', '.join(result['allow']) or 'no node'}")
    if not allow and not as_json:
        say("hint: no node is allowed yet; add --allow any or --allow ID", err=True)


@click.command("unexpose")
@click.argument("name")
@click.option(
    "--drain",
    metavar="SECONDS",
    default=0.0,
    type=NumberRange(0, 86_400),
    help="How long its connections may take to end by themselves.",
)
@home_option
@json_option
def unexpose_command(name: str, drain: float, home: Path, as_json: bool) -> None:
    """Withdraw an exposed service, and end its connections.

    No new connection is accepted. Those that there are end with a reset: at once, or after --drain SECONDS.

    JSON: {"name", "cut"}, the latter is how many connections were reset

    \b
    Example: meshnode unexpose web --drain 30
    """
    from meshnode.daemon.requests.services import Unexpose
    from meshnode.diagnosis.finding import plural

    result = ask_one(home, Unexpose(name, drain))
    cut = f"; {plural(result['cut'], 'connection')} cut" if result["cut"] else ""
    emit(result, as_json, f"{name} is withdrawn{cut}")


trusted_option = click.option(
    "--from",
    "trusted",
    multiple=True,
    metavar="any|ID|NAME",
    help="SERVICE alone: a node that may serve it, or any; repeatable, for failover.",
)


@click.command("forward")
@click.argument("listen", callback=_whole)
@click.argument("to", metavar="[NODE/]SERVICE")
@trusted_option
@click.option("--sticky", is_flag=True, help="SERVICE alone: stay with one instance as long as it works.")
@home_option
@json_option
def forward_command(listen: str, to: str, trusted: tuple[str, ...], sticky: bool, home: Path, as_json: bool) -> None:
    """Listen here for a service of another node.

    LISTEN is PORT, HOST:PORT, unix:PATH or udp://HOST:PORT. Each connection goes to the
    service and survives moves of either node.
    A Unix socket is for this user alone; one at which nothing listens any more is replaced. HOST:8000-8010 is a forward
    a port, to SERVICE-8000 and so on.
    NODE/SERVICE is the service of one node, named by its id or its name. SERVICE alone is the node that was the only
    one to offer it when it was first used here; several are an error, for any member can offer any name, and so is
    another one later (`meshnode forget SERVICE` forgets the first). --from says which nodes may serve instead: of these
    any instance that works, near and idle ones first; when the one in use dies, its connections end within a second,
    and new ones go to the next.

    It is kept over restarts, also when nothing is there yet: a warning then says what is missing ("problem" in JSON).
    `meshnode status` has the last error of each forward.

    JSON: {"listen", "to", "problem"}

    \b
    Example: meshnode forward 8080 ID/web
    Example: meshnode forward 5432 db --from rack1 --from rack2
             meshnode forward unix:/run/user/1000/db.sock ID/db
    """
    from meshnode.daemon.requests.services import Forward

    result = ask_one(home, Forward(listen, to, sticky, trusted))
    emit(result, as_json, f"{result['listen']} -> {result['to']}")
    if not as_json and (problem := result.get("problem")):
        say(f"warning: {problem['message']}; the forward waits for it", err=True)
        say(f"hint: {problem['hint']}", err=True)
    if not as_json and _is_open(result.get("listens", [result["listen"]])[0]):
        port = result["listen"].rpartition(":")[2]
        opens = "this opens it to the LAN: every host that reaches this one can use it"
        say(f"warning: {opens}; 127.0.0.1:{port} keeps it here", err=True)


def _is_open(listen: str) -> bool:
    """Return whether other hosts reach a listener."""
    from ipaddress import ip_address

    from meshnode.services.ends import parse_listen

    end = parse_listen(listen)
    try:
        found = socket.getaddrinfo(end.host, None) if not end.path else []
    except OSError:
        return False
    return not all(ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


@click.command("unforward")
@click.argument("listen", callback=_whole)
@home_option
@json_option
def unforward_command(listen: str, home: Path, as_json: bool) -> None:
    """Stop a forward, named by its address, its port or its path.

    JSON: {"listen"}

    \b
    Example: meshnode unforward 8080
    """
    from meshnode.daemon.requests.services import Unforward

    result = ask_one(home, Unforward(listen))
    emit(result, as_json, f"{result['listen']} is closed")


@click.command("connect")
@click.argument("to", metavar="[NODE/]SERVICE")
@trusted_option
@home_option
@json_option
def connect_command(to: str, trusted: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Connect stdin and stdout to a service of another node.

    NODE/SERVICE is the service of one node, named by its id or its name; SERVICE alone is as in `meshnode forward`. The
    end of either direction is passed on while the other goes on; at a terminal the command ends when the service does.
    Exit code 0 when both directions have ended in order, 1 when there was no connection or it broke: then what came is
    not the whole.

    JSON: only errors

    \b
    Example: ssh -o ProxyCommand='meshnode connect laptop/ssh' me@laptop
    """
    from meshnode.cli.pipe import pipe
    from meshnode.daemon.client import open_stream
    from meshnode.daemon.requests.services import Connect

    with open_stream(home, Connect(to, trusted)) as (connection, source):
        pipe(connection, source)


def _carried(usage: dict[str, int]) -> str:
    into, out = (f"{_size(usage[f'bytes_{way}'])} {way} ({_size(usage[f'rate_{way}'])}/s)" for way in ("in", "out"))
    return f"{into}, {out}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


@click.command("exposes")
@home_option
@json_option
def exposes_command(home: Path, as_json: bool) -> None:
    """List what this node exposes, one service a line.

    The bytes a second are those of the last five seconds. What `meshnode run --expose` offers ends with its program.

    JSON: {"name", "target", "allow", "state", "last_error", "targets", "usage", "kept"}; each of targets {"target",
    "connections", "last_error"}; usage {"opened", "refused", "bytes_in", "bytes_out", "rate_in", "rate_out", "dropped",
    "too_large"}, in: from the mesh, the last two of datagrams; kept is false for what `meshnode run --expose` offers

    \b
    Example: meshnode exposes --json
    """
    from meshnode.daemon.requests.services import Exposes

    found = 0
    for item in ask(home, Exposes()):
        found += 1
        connections = sum(target["connections"] for target in item["targets"])
        text = f"{item['name']:16} {item['state']:8} {item['target']}  {connections} open, {_carried(item['usage'])}"
        text += f"  for {', '.join(item['allow']) or 'no node'}"
        text += "" if item.get("kept", True) else ", as long as its program runs"
        wrong = [f"  {t['target']}: {t['last_error']}" for t in item["targets"] if t["last_error"]]
        emit(item, as_json, text, *wrong)
    if not found and not as_json:
        say("nothing is exposed; `meshnode expose` offers a service")


@click.command("forwards")
@home_option
@json_option
def forwards_command(home: Path, as_json: bool) -> None:
    """List the forwards of this node, one a line.

    JSON: {"listen", "to", "sticky", "connections", "usage", "last_error"}, and "error" while it does not listen; usage
    as in `meshnode exposes`

    \b
    Example: meshnode forwards --json
    """
    from meshnode.daemon.requests.services import Forwards

    found = 0
    for item in ask(home, Forwards()):
        found += 1
        wrong = [item["error"]] if "error" in item else []
        wrong += [item["last_error"]["message"]] if item["last_error"] else []
        text = f"{item['listen']:24} {item['to']}  {item['connections']} open, {_carried(item['usage'])}"
        emit(item, as_json, text, *(f"  {each}" for each in wrong))
    if not found and not as_json:
        say("nothing is forwarded; `meshnode forward` listens for a service")


@click.command("services")
@click.argument("name", required=False)
@home_option
@json_option
def services_command(name: str | None, home: Path, as_json: bool) -> int:
    """List what the nodes of the mesh offer, one instance a line.

    A service is listed when it is announced: one that any node is allowed to use, unless it was exposed with
    --no-announce. The state is up, failing or suspect, or what this node has met there (silent, failed, refused);
    refused too where the mesh's policy, or this node's own grants, do not let it use the service. Exit code 1 when no
    node offers NAME.

    JSON: {"service", "id", "name", "state", "load", "restricted", "allowed", "rtt_ms", "meta"}; allowed is null where
    only that node knows

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
    if not found and as_json and name:
        fail(NotFound(f"no node offers {name!r}", hint=f"on the node that has it: meshnode expose {name} PORT"), True)
    if not found and not as_json:
        say(
            f"no node offers {name!r}; here: meshnode expose {name} PORT"
            if name
            else "no service is announced; `meshnode expose` offers one"
        )
    return 0 if found or name is None else 1
