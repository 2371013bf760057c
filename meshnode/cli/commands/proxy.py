"""Commands about the proxies of the running node: ways in for programs that cannot be changed."""

from __future__ import annotations

from pathlib import Path

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, say


@click.command("proxy")
@click.argument("listen", required=False)
@click.option("--public", is_flag=True, help="Also listen where other hosts reach this one.")
@click.option("--dns", metavar="ADDR:PORT", help="Also answer DNS for .mesh there, on loopback.")
@home_option
@json_option
def proxy_command(listen: str | None, public: bool, dns: str | None, home: Path, as_json: bool) -> None:
    """Run a SOCKS5 and HTTP proxy into the mesh, or list those that run.

    LISTEN is PORT or HOST:PORT. Programs that are told to use it reach SERVICE.NODE.mesh: NODE is an id or a node's
    name, SERVICE what `meshnode expose` offers there. NODE.mesh alone is the service that is named as the port's number
    or, at usual ports, by its usual name (80: http or web). It leads nowhere else. The proxy resolves the names, so
    curl needs -x, which speaks HTTP, or --socks5-hostname.

    It is kept over restarts. Every program of this host can use it, and none of another one unless it is --public: what
    is opened through it is opened by this node.

    --dns is for programs that look names up themselves: it answers with addresses that the proxy takes for the names,
    and for .mesh alone, so that a resolver of this host has to send it the names of that zone.

    JSON: {"listen", "dns"}; without LISTEN one object a proxy: {"listen", "public", "dns", "connections", "last_error"}

    \b
    Example: meshnode proxy 1080; curl -x http://127.0.0.1:1080 http://web.laptop.mesh/
    """
    from meshnode.daemon.requests.proxy import Proxies, StartProxy

    if listen is None:
        for item in ask(home, Proxies()):
            wrong = item.get("error") or (item["last_error"] or {}).get("message", "")
            text = f"{item['listen']:24} {item['connections']} connections  {wrong}"
            emit(item, as_json, text.rstrip())
        return
    result = ask_one(home, StartProxy(listen, public, dns))
    names = [f"DNS for .mesh on {result['dns']}"] if result["dns"] else []
    emit(result, as_json, f"SOCKS5 and HTTP proxy on {result['listen']}", *names)
    if public and not as_json:
        say("warning: every host that reaches this one can use the mesh as this node", err=True)


@click.command("unproxy")
@click.argument("listen")
@home_option
@json_option
def unproxy_command(listen: str, home: Path, as_json: bool) -> None:
    """Stop a proxy, named by its address or its port.

    Its connections are reset.

    JSON: {"listen"}

    \b
    Example: meshnode unproxy 1080
    """
    from meshnode.daemon.requests.proxy import StopProxy

    result = ask_one(home, StopProxy(listen))
    emit(result, as_json, f"{result['listen']} is closed")
