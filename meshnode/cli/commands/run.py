"""``up`` and ``seed``: a node in the foreground."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import F, home_option, json_option
from meshnode.cli.output import emit, fail, say

if TYPE_CHECKING:
    from meshnode.sdk.node import Node

log = logging.getLogger("meshnode.node")

MEND_FIRST = 78  # EX_CONFIG of sysexits(3): a service manager need not try again


def _secret(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Warn of a secret key that was given as an argument; it is used all the same."""
    if value is not None and value.startswith("mk-"):
        say("warning: every user of this host can read this mesh key in the list of processes", err=True)
        say("hint: put it into a file (chmod 600) and say --mesh @FILE, or into the variable MESHNODE_MESH", err=True)
    return value


def _node_options(command: F) -> F:
    options: list[Callable[[F], F]] = [
        home_option,
        json_option,
        click.option("--listen", metavar="ADDR:PORT", help="Where to listen  [default: [::]:0]"),
        click.option(
            "--seed", "seeds", multiple=True, metavar="ID@HOST:PORT", help="A node to begin with; repeatable."
        ),
        click.option("--name", metavar="NAME", help="What others may call this node: NAME, or NAME.mesh."),
        click.option(
            "--mesh",
            metavar="NAME|@FILE|KEY",
            callback=_secret,
            help='The mesh to be in; @FILE holds its secret key  [default: "open"]',
        ),
        click.option("--advertise", multiple=True, metavar="ADDR:PORT", help="Also publish this address; repeatable."),
        click.option(
            "--allow",
            multiple=True,
            metavar="any|ID",
            help="A node that may connect; repeatable  [default: any]",
        ),
        click.option("--role", type=click.Choice(["node", "leaf"]), help="leaf: at the mesh's edge  [default: node]"),
        click.option("--no-mdns", is_flag=True, help="Neither announce nor look on the LAN."),
        click.option("--no-port-mapping", is_flag=True, help="Ask the router for no port mapping."),
        click.option("--verbose", "-v", is_flag=True, help="Say more on stderr."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run(**options: Any) -> int:
    """Run a node; return the exit code.

    Looking for garbage is a sixteenth of the start, and once is enough: when the node runs (``daemon.server``).
    """
    gc.disable()
    try:
        return _run_node(**options)
    finally:
        gc.enable()


def _run_node(
    home: Path, as_json: bool, seed_role: bool, verbose: bool, no_mdns: bool, no_port_mapping: bool, **flags: Any
) -> int:
    from meshnode.base.refusals import refusal
    from meshnode.config import Config
    from meshnode.daemon.log import begin_log
    from meshnode.daemon.server import run
    from meshnode.errors import ConfigError, InvalidId, KeyFileError

    begin_log(verbose)
    values = {name: value for name, value in flags.items() if value not in (None, ())}
    if no_mdns:
        values["mdns"] = False
    if no_port_mapping:
        values["port_mapping"] = False
    if seed_role:
        values["seed_role"] = True

    def ready(node: Node) -> None:
        endpoints = node.status()["endpoints"]
        lines = [str(node.id), f"  address   {node.address}", f"  listening {', '.join(endpoints) or 'nowhere yet'}"]
        if seed_role and endpoints:
            lines.append(f"  others    meshnode up --seed {node.id}@{endpoints[0]}")
        lines += _mesh_lines(node)
        value = {"ready": True, "id": str(node.id), "address": node.address, "endpoints": endpoints}
        value["mesh"] = _mesh_word(node)
        try:
            emit(value, as_json, *lines, "  stop with Ctrl-C")
        except BrokenPipeError:
            raise
        except OSError as error:  # into a file on a full disk, say: a node that runs is worth more than this
            log.warning("standard output takes nothing: %s", refusal(error)[0])

    try:
        _renew_own(home)
        run(Config.load(home, values), ready)
    except (ConfigError, InvalidId, KeyFileError) as error:
        fail(error, as_json)
        return MEND_FIRST
    return 0


def _renew_own(home: Path) -> None:
    """Renew the grant of a node in its authority's home, where that key is there and open, before it starts."""
    import os
    from time import time

    if not (home / "authority.key").exists():
        return
    from meshnode.config import key_of_environment
    from meshnode.errors import MeshError
    from meshnode.identity.keyfile import given_key, load
    from meshnode.trust.home_mesh import load_authority
    from meshnode.trust.operator import renew_own

    try:
        authority = load_authority(home, os.environ.get("MESHNODE_AUTHORITY_PASSPHRASE"))
        text = key_of_environment(os.environ)
        node = given_key(text) if text is not None else load(home / "key", os.environ.get("MESHNODE_PASSPHRASE"))
        if authority is not None:
            renew_own(home, node.id, authority, time(), os.urandom)
    except MeshError:
        return  # it is not needed: the node shows the grant that it has


def _mesh_word(node: Node) -> str:
    """Return the kind of mesh that a node is in: ``private``, or the name of an open one."""
    return "private" if node.config.authority or node.config.mesh.startswith("mk-") else node.config.mesh


def _mesh_lines(node: Node) -> list[str]:
    """Return what a person is to know of the mesh that a node is in."""
    config = node.config
    if config.authority:
        return [f"  mesh      private; roles: {', '.join(sorted(node.roles)) or 'none'}"]
    if config.mesh.startswith("mk-"):
        return ["  mesh      private, without an authority"]
    return [
        f"  mesh      {config.mesh}: open, every node that knows this name is in it",
        "            `meshnode mesh create NAME` makes one of your own, `meshnode join TICKET` joins one",
    ]


@click.command("up")
@_node_options
def up_command(**options: Any) -> int:
    """Run a node in the foreground until Ctrl-C.

    Other commands of this home talk to it. Exit code 78: a setting or the key file must be mended first.

    JSON: {"ready", "id", "address", "endpoints", "mesh"}

    \b
    Example: meshnode up --seed ID@seed.example.org:4242
    """
    return _run(seed_role=False, **options)


@click.command("seed")
@_node_options
def seed_command(**options: Any) -> int:
    """Run a node that others may begin with.

    It is up with room for many more records, and a relay. Exit code 78: a setting or the key file must be mended first.

    JSON: {"ready", "id", "address", "endpoints", "mesh"}

    \b
    Example: meshnode seed --listen 0.0.0.0:4242 --advertise 203.0.113.7:4242
    """
    return _run(seed_role=True, **options)
