"""``run``: a program that uses the mesh, or serves in it, for its lifetime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.ask import ask
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import fail, say

if TYPE_CHECKING:
    from meshnode.daemon.request import Request
    from meshnode.errors import MeshError

LOOPBACK = "localhost,127.0.0.1,::1"
LOOK_S = 0.2  # between looks whether the program listens
AGAIN_S = 1.0  # between looks whether a node that has stopped runs again


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

    When the node stops, the program goes on without the mesh, and has it again, by the same proxy, once the node runs.

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
            lent = _Lent(home)
            environment |= proxy_settings(lent.begin(), os.environ.get("NO_PROXY"))
            return launch(command, environment, lent.keep_for)
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


class _While:
    """What the node does as long as this process runs; a node that was started again is asked to do it again."""

    def __init__(self, home: Path, what: str) -> None:
        self._home = home
        self._what = what

    def ask(self, asked: Request) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
        """Return the answers, which are open as long as the node does it, and the first of them. Raises MeshError."""
        answers = ask(self._home, asked)
        return answers, next(answers)

    def keep(self, asked: Request, answers: Iterator[dict[str, Any]]) -> None:
        """Ask again whenever the node has stopped; this has no end."""
        from meshnode.errors import MeshError

        while True:
            try:
                for _ in answers:
                    pass
            except MeshError as error:
                _tell(f"{self._what} is gone", error)
            answers = self._ask_again(asked)
            say(f"the node runs again, and so does {self._what}", err=True)

    def _ask_again(self, asked: Request) -> Iterator[dict[str, Any]]:
        from time import sleep

        from meshnode.errors import MeshError, NotRunning

        told = NotRunning.code
        while True:
            sleep(AGAIN_S)
            try:
                return self.ask(asked)[0]
            except MeshError as error:
                if error.code not in (NotRunning.code, told):  # a node that runs, and will not
                    told = error.code
                    _tell(f"{self._what} is not there yet", error)


def _tell(what: str, error: MeshError) -> None:
    say(f"error: {what}: {error}", err=True)
    say(f"hint: {error.hint}", err=True)


class _Lent(_While):
    """A proxy of the node's for the program."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "the proxy of this program")

    def begin(self) -> str:
        """Return where it listens. Raises MeshError."""
        from meshnode.daemon.requests.programs import ProxyWhile

        self._answers, found = self.ask(ProxyWhile())
        self._listen = str(found["listen"])
        return self._listen

    def keep_for(self, process: int) -> None:
        """Keep it there, from a thread."""
        import threading

        from meshnode.daemon.requests.programs import ProxyWhile

        asked = ProxyWhile(int(self._listen.rpartition(":")[2]))
        threading.Thread(target=self.keep, args=(asked, self._answers), daemon=True).start()


class _Exposing(_While):
    """Exposes what a program listens on, from a thread, until this process ends."""

    def __init__(self, home: Path, name: str, port: int | None, allow: tuple[str, ...]) -> None:
        super().__init__(home, f"the service {name}")
        self._name = name
        self._port = port
        self._allow = allow

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
        asked = ExposeWhile(self._name, str(port), self._allow)
        try:
            answers, found = self.ask(asked)
        except MeshError as error:
            _tell(f"{self._name} is not exposed", error)
            return
        say(f"{found['name']} -> {found['target']} as long as it runs", err=True)
        self.keep(asked, answers)
