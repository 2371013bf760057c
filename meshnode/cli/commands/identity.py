"""``keygen`` and ``id``: keys, without a running node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit
from meshnode.errors import ConfigError, KeyFileError

if TYPE_CHECKING:
    from meshnode.identity.keys import Identity


def _show(identity: Identity, as_json: bool) -> None:
    id, address = str(identity.id), str(identity.id.overlay)
    emit({"id": id, "address": address}, as_json, id, address)


def _make_mesh(path: Path, as_json: bool, force: bool) -> None:
    from meshnode.identity.mesh_file import make_mesh_key

    make_mesh_key(path, replace=force)
    emit({"file": str(path)}, as_json, str(path), f"  run nodes with --mesh @{path}, each with a copy of this file")


@click.command("keygen")
@home_option
@json_option
@click.option("--force", is_flag=True, help="Replace a key that is there; its address or mesh is lost for good.")
@click.option(
    "--mesh", "mesh_file", metavar="FILE", type=click.Path(), help="Make the secret key of a new mesh instead."
)
def keygen_command(home: Path, as_json: bool, force: bool, mesh_file: str | None) -> None:
    """Make a key in the home directory, or the key of a mesh.

    The home's key is encrypted when MESHNODE_PASSPHRASE is set, and refused while a node runs there. With --mesh FILE:
    a mesh of one's own, which only nodes with a copy of FILE are in; each runs with --mesh @FILE.

    JSON: {"id", "address"}, with --mesh {"file"}

    \b
    Example: meshnode keygen --home ~/.meshnode
    Example: meshnode keygen --mesh mesh.key
             meshnode up --mesh @mesh.key
    """
    if mesh_file == "":
        raise KeyFileError("--mesh is empty", hint="name the file to make, as mesh.key")
    if mesh_file is not None:
        from meshnode.base.files import without_tilde

        _make_mesh(without_tilde(mesh_file).absolute(), as_json, force)
        return
    from meshnode.identity.keyfile import save
    from meshnode.identity.price import make_identity
    from meshnode.runtime.files import HomeLock

    path = home / "key"
    if os.path.lexists(path) and not force:
        raise KeyFileError(f"{path} exists already", hint="`meshnode id` shows it; --force would replace it")
    try:
        lock = HomeLock(home)  # a node that runs would go on under the old key, and be another after its restart
    except ConfigError as error:
        raise KeyFileError(error.message, hint=error.hint) from error
    try:
        identity = make_identity()
        save(path, identity, os.environ.get("MESHNODE_PASSPHRASE"))
    finally:
        lock.release()
    _show(identity, as_json)


@click.command("id")
@home_option
@json_option
def id_command(home: Path, as_json: bool) -> None:
    """Print this home's id and overlay IPv6 address; makes no key.

    As for up, MESHNODE_KEY and MESHNODE_KEY_FILE (a mounted secret) come before the home's key file.

    JSON: {"id", "address"}

    \b
    Example: meshnode id --json
    """
    from meshnode.config import key_of_environment
    from meshnode.identity.keyfile import given_key, load

    try:
        text = key_of_environment(os.environ)
    except ConfigError as error:
        raise KeyFileError(error.message, hint=error.hint) from error
    if text is not None:
        _show(given_key(text), as_json)
        return
    _show(load(home / "key", os.environ.get("MESHNODE_PASSPHRASE")), as_json)
