"""Commands about what the mesh has in common: members and names."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meshnode.cli.ask import ask, ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit


@click.command("watch")
@home_option
@json_option
def watch_command(home: Path, as_json: bool) -> None:
    """Show members and services, then every change, until Ctrl-C.

    JSON: {"event": "member", "id", "status", "name"}, {"event": "service", "change": "up|changed|down", "service",
    "id", "state", "name"}, {"event": "name_conflict", "id", "detail"}

    \b
    Example: meshnode watch --json | jq 'select(.event == "service")'
    """
    from meshnode.daemon.requests.mesh import Watch

    for item in ask(home, Watch()):
        node = f"{item['id'][:12]} {item.get('name', '')}".rstrip()
        if item["event"] == "member":
            text = f"member   {node:24} {item['status']}"
        elif item["event"] == "service":
            text = f"service  {node:24} {item['service']} {item['change']}"
            text += "" if item["state"] in ("up", "down") else f" ({item['state']})"
        else:
            text = f"{item['event']}  {node} {item['detail']}"
        emit(item, as_json, text)
        sys.stdout.flush()


@click.command("forget")
@click.argument("name")
@home_option
@json_option
def forget_command(name: str, home: Path, as_json: bool) -> None:
    """Forget which node a name meant here; its next use asks the mesh again.

    The first use of a node's name pins its id, as ssh does with host keys. When another node holds the name now and
    that is right, forget the old meaning.

    JSON: {"name"}

    \b
    Example: meshnode forget laptop
    """
    from meshnode.daemon.requests.mesh import Forget

    emit(ask_one(home, Forget(name)), as_json, f"{name} means nothing here until it is used again")
