"""``mcp``: servers of the Model Context Protocol that speak on stdin and stdout, on the mesh."""

from __future__ import annotations

from pathlib import Path

import click

from meshnode.cli.ask import ask
from meshnode.cli.commands import services
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit

STOP = "stop with Ctrl-C"


@click.group("mcp")
def mcp_group() -> None:
    """Put a tool server on the mesh, or use one from an agent.

    For servers of the Model Context Protocol, and all others that speak on stdin and stdout.

    \b
    Example: meshnode mcp serve --name files --allow laptop -- npx @modelcontextprotocol/server-filesystem /srv
             meshnode mcp connect server/files
    """


@mcp_group.command("serve", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", default="mcp", show_default=True, help="The name of the service.")
@click.option("--allow", multiple=True, metavar="any|ID|NAME|role:R", help="A node that may use it; repeatable.")
@click.option(
    "--limit", type=click.IntRange(1), default=16, show_default=True, help="Sessions, and so processes, at once."
)
@home_option
@json_option
def serve_command(
    command: tuple[str, ...], name: str, allow: tuple[str, ...], limit: int, home: Path, as_json: bool
) -> None:
    """Offer a server that speaks on stdin and stdout, as long as this command runs.

    The server is started once for each session, with MESH_CALLER_ID in its environment: the id of the node that calls,
    which it has proven. A session goes on while either node moves. When it ends, the server's stdin ends; a server that
    stays is terminated 5 s later.

    JSON: {"name"}

    \b
    Example: meshnode mcp serve --name files --allow laptop -- npx @modelcontextprotocol/server-filesystem /srv
    """
    import shutil
    import signal
    import sys

    from meshnode.cli.launch import CannotRun
    from meshnode.cli.sessions import Sessions
    from meshnode.daemon.requests.mcp import StdioWhile

    if shutil.which(command[0]) is None:  # else each caller would learn it, and nothing here would say so
        raise CannotRun(
            f"cannot run {command[0]}: it is not there, or no program", hint="is it installed, and in PATH?"
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the servers are ended

    with Sessions(command) as sessions:
        for answer in ask(home, StdioWhile(name, sessions.path, allow, limit)):
            emit(answer, as_json, f"{name} is {command[0]}, {STOP}")


@mcp_group.command("connect")
@click.argument("to", metavar="[NODE/]NAME")
@services.trusted_option
@home_option
@json_option
def connect_command(to: str, trusted: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Be the server of an agent on this host: stdin and stdout lead to one on another node.

    What `meshnode connect` does; agents take it as a command.

    JSON: only errors

    \b
    Example: {"mcpServers": {"files": {"command": "meshnode", "args": ["mcp", "connect", "laptop/files"]}}}
    """
    callback = services.connect_command.callback
    assert callback is not None
    callback(to, trusted, home, as_json)
