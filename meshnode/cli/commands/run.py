"""``up`` and ``seed``: a node in the foreground."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import F, home_option, json_option

if TYPE_CHECKING:
    from meshnode.sdk.node import Node


def _node_options(command: F) -> F:
    options: list[Callable[[F], F]] = [
        home_option,
        json_option,
        click.option("--listen", metavar="ADDR:PORT", help="Where to listen  [default: [::]:0]"),
        click.option(
            "--seed", "seeds", multiple=True, metavar="ID@HOST:PORT", help="A node to begin with; repeatable."
        ),
        click.option("--name", metavar="NAME", help="What others may call this node: NAME, or NAME.mesh."),
        click.option("--mesh", metavar="NAME|KEY", help='The mesh to be in  [default: "open"]'),
        click.option("--advertise", multiple=True, metavar="ADDR:PORT", help="Also publish this address; repeatable."),
        click.option(
            "--allow",
            multiple=True,
            metavar="any|ID",
            help="A node that may connect; repeatable  [default: any]",
        ),
        click.option("--no-mdns", is_flag=True, help="Neither announce nor look on the LAN."),
        click.option("--no-port-mapping", is_flag=True, help="Ask the router for no port mapping."),
        click.option("--verbose", "-v", is_flag=True, help="Say more on stderr."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run(
    home: Path, as_json: bool, seed_role: bool, verbose: bool, no_mdns: bool, no_port_mapping: bool, **flags: Any
) -> None:
    import logging

    from meshnode.config import Config
    from meshnode.daemon.server import run

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    values = {name: value for name, value in flags.items() if value not in (None, ())}
    if no_mdns:
        values["mdns"] = False
    if no_port_mapping:
        values["port_mapping"] = False
    if seed_role:
        values["seed_role"] = True
    config = Config.load(home, values)

    def ready(node: Node) -> None:
        endpoints = node.status()["endpoints"]
        if as_json:
            line = {"ready": True, "id": str(node.id), "address": node.address, "endpoints": endpoints}
            click.echo(json.dumps(line))
        else:
            click.echo(f"{node.id}\n  address   {node.address}\n  listening {', '.join(endpoints) or 'nowhere yet'}")
            if seed_role and endpoints:
                click.echo(f"  others    meshnode up --seed {node.id}@{endpoints[0]}")
            click.echo("  stop with Ctrl-C")

    run(config, ready)


@click.command("up")
@_node_options
def up_command(**options: Any) -> None:
    """Run a node in the foreground until Ctrl-C.

    Other commands of this home talk to it.

    JSON: {"ready", "id", "address", "endpoints"}

    \b
    Example: meshnode up --seed ID@seed.example.org:4242
    """
    _run(seed_role=False, **options)


@click.command("seed")
@_node_options
def seed_command(**options: Any) -> None:
    """Run a node that others may begin with.

    It is up with room for many more records, and a relay.

    JSON: {"ready", "id", "address", "endpoints"}

    \b
    Example: meshnode seed --listen 0.0.0.0:4242 --advertise 203.0.113.7:4242
    """
    _run(seed_role=True, **options)
