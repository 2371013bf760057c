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

    JSON: {"time", "event": "member", "id", "status", "name"}, {"time", "event": "service", "change":
    "up|changed|down", "service", "id", "state", "name"}, {"time", "event": "name_conflict", "id", "detail"},
    {"time", "event": "provider_conflict", "id", "service", "detail"}

    \b
    Example: meshnode watch --json | jq 'select(.event == "service")'
    """
    from datetime import datetime

    from meshnode.daemon.requests.mesh import Watch

    for item in ask(home, Watch()):
        node = f"{item['id'][:12]} {item.get('name', '')}".rstrip()
        at = datetime.fromisoformat(item["time"]).astimezone().strftime("%H:%M:%S")
        if item["event"] == "member":
            text = f"member   {node:24} {item['status']}"
        elif item["event"] == "service":
            text = f"service  {node:24} {item['service']} {item['change']}"
            text += "" if item["state"] in ("up", "down") else f" ({item['state']})"
        else:
            text = f"{item['event']}  {node} {item['detail']}"
        emit(item, as_json, f"{at}  {text}")
        sys.stdout.flush()


@click.command("forget")
@click.argument("name")
@home_option
@json_option
def forget_command(name: str, home: Path, as_json: bool) -> None:
    """Forget which node a name or a service meant here.

    The first use of a node's name pins its id, as ssh does with host keys; the first use of a service by its name alone
    pins the node that offers it. When another node has it now and that is right, forget the old meaning: the next use
    asks the mesh again.

    JSON: {"name"}

    \b
    Example: meshnode forget laptop
    """
    from meshnode.daemon.requests.mesh import Forget

    emit(ask_one(home, Forget(name)), as_json, f"{name} means nothing here until it is used again")
