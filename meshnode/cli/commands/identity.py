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
    text = f"{identity.id}\n{identity.id.overlay}"
    emit({"id": str(identity.id), "address": str(identity.id.overlay)}, as_json, text)


@click.command("keygen")
@home_option
@json_option
@click.option("--force", is_flag=True, help="Replace a key that is there; its address is lost for good.")
def keygen_command(home: Path, as_json: bool, force: bool) -> None:
    """Make a key in the home directory.

    The key file is encrypted when MESHNODE_PASSPHRASE is set.

    JSON: {"id", "address"}

    \b
    Example: meshnode keygen --home ~/.meshnode
    """
    from meshnode.identity.keyfile import save
    from meshnode.identity.keys import Identity

    path = home / "key"
    if os.path.lexists(path) and not force:
        raise KeyFileError(f"{path} exists already", hint="`meshnode id` shows it; --force would replace it")
    identity = Identity.generate()
    save(path, identity, os.environ.get("MESHNODE_PASSPHRASE"))
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
