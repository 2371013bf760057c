"""``rotate``: a new key for a node, to which its grants and the rules about it belong."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meshnode.cli.ask import ask
from meshnode.cli.commands.trust import Span
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit
from meshnode.errors import ConfigError, NotRunning


@click.command("rotate")
@click.option(
    "--grace", type=Span(), default="7d", show_default=True, help="How long the old key counts too, 90d at most."
)
@home_option
@json_option
def rotate_command(grace: float, home: Path, as_json: bool) -> None:
    """Replace this node's key by a new one, in a mesh with an authority.

    The old key signs the new one, and the new one the old: grants, roles and allow rules follow, and dials of the old
    id lead to the new one. A running node goes on with the old key until it is restarted. The old key is kept in
    HOME/key.old for the grace period. A key that is revoked has no successor.

    JSON: {"id", "old", "grace_until", "restart"}

    \b
    Example: meshnode rotate
             meshnode rotate --grace 30d
    """
    from time import time

    from meshnode.cli.commands.trust import node_of
    from meshnode.config import key_of_environment
    from meshnode.daemon.requests.trust import KeepGrants
    from meshnode.trust.operator import rotate

    if key_of_environment(os.environ) is not None:
        raise ConfigError("the key comes from the environment", hint="replace it there; this is for keys in a home")
    old = node_of(home, make=False)
    keeping = ask(home, KeepGrants())  # until this command ends
    try:
        next(keeping)
        runs = True
    except NotRunning:
        runs = False
    new, ends = rotate(home, old, os.environ.get("MESHNODE_PASSPHRASE"), grace, time(), os.urandom)
    value = {"id": str(new.id), "old": str(old.id), "grace_until": ends / 1000, "restart": runs}
    hint = "  restart the node of this home: it runs with the old key until then" if runs else "  meshnode up"
    emit(value, as_json, f"{new.id} replaces {old.id}", hint)
