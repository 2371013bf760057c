"""``run``: a program that uses the mesh, or serves in it, for its lifetime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from meshnode.cli.ask import ask
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import fail, say

LOOPBACK = "localhost,127.0.0.1,::1"
LOOK_S = 0.2  # between looks whether the program listens


def _exposed(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int | None] | None:
    if value is None:
        return None
    from meshnode.base.address import parse_port

    name, mark, port = value.partition("=")
    if not name or (mark and not parse_port(port)):
        raise click.BadParameter(f"{value!r} is neither NAME nor NAME=PORT", ctx, param)
    return name, int(port) if mark else None


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--expose", metavar="NAME[=PORT]", callback=_exposed, help="Offer the port that it opens, under a name.")
@click.option("--allow", multiple=True, metavar="any|ID|NAME", help="A node that may use that; repeatable.")
@home_option
@json_option
def run_command(
    command: tuple[str, ...], expose: tuple[str, int | None] | None, allow: tuple[str, ...], home: Path, as_json: bool
) -> int:
    """Run a program that uses the mesh, or serves in it.

    The program has a proxy of its own in its environment (ALL_PROXY, HTTP_PROXY and HTTPS_PROXY): what heeds that
    reaches SERVICE.NODE.mesh as with `meshnode proxy`, and no host outside of the mesh by HTTP.

    With --expose it has none, and the port that it listens on, or PORT, is a service of this node as long as it runs.
    Without PORT the first port is taken that it or a child of it opens (Linux).

    Signals are passed on to the program. Its exit code is the one of this command, and a signal that ends it ends
    this command too; 127 and 126 when it is not there or cannot be run.

    JSON: only errors

    \b
    Example: meshnode run -- curl http://web.laptop.mesh/
    Example: meshnode run --expose web --allow any -- python3 -m http.server 8000
    """
    from meshnode.cli.launch import CANNOT_RUN, NO_SUCH, CannotRun, launch

    environment = dict(os.environ, MESHNODE_HOME=str(home))
    try:
        if expose is None:
            from meshnode.daemon.requests.programs import ProxyWhile

            answers = ask(home, ProxyWhile())
            environment |= proxy_settings(next(answers)["listen"], os.environ.get("NO_PROXY"))
            return launch(command, environment, lambda process: None)
        return launch(command, environment, _Exposing(home, *expose, allow).begin)
    except CannotRun as error:
        fail(error, as_json)
        return NO_SUCH if isinstance(error.__cause__, FileNotFoundError) else CANNOT_RUN


def proxy_settings(listen: str, kept: str | None) -> dict[str, str]:
    """Return the variables by which programs find a proxy; ``kept`` are hosts that they reach without one."""
    values = {
        "all_proxy": f"socks5h://{listen}",
        "http_proxy": f"http://{listen}",
        "https_proxy": f"http://{listen}",
        "no_proxy": f"{kept},{LOOPBACK}" if kept else LOOPBACK,
    }
    return values | {name.upper(): value for name, value in values.items()}


class _Exposing:
    """Exposes what a program listens on, from a thread, until this process ends."""

    def __init__(self, home: Path, name: str, port: int | None, allow: tuple[str, ...]) -> None:
        self._home = home
        self._name = name
        self._port = port
        self._allow = allow
        self._answers: Iterator[dict[str, Any]] | None = None

    def begin(self, process: int) -> None:
        """Expose the port once the program listens; at once when it is known."""
        import threading

        threading.Thread(target=self._expose, args=(process,), daemon=True).start()

    def _expose(self, process: int) -> None:
        from time import sleep

        from meshnode.cli.listening import listening_port
        from meshnode.daemon.requests.programs import ExposeWhile
        from meshnode.errors import MeshError

        port = self._port
        while port is None:
            port = listening_port(process)
            sleep(LOOK_S)
        try:
            self._answers = ask(self._home, ExposeWhile(self._name, str(port), self._allow))
            found = next(self._answers)
        except MeshError as error:
            say(f"error: {self._name} is not exposed: {error}", err=True)
            say(f"hint: {error.hint}", err=True)
        else:
            say(f"{found['name']} -> {found['target']} as long as it runs", err=True)
