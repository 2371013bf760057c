"""The mesh of a home: its secret and its authority, the node's grants, and the authority's key where that is kept.

HOME/mesh.json        name, mesh key, authority, seeds (0600)
HOME/mesh.rotation    the next secret, signed (0600); only while or after the secret was rotated
HOME/grant            the node's grants, canonical CBOR
HOME/authority.key    the authority's key, apart from the node's; only where the mesh was made
"""

from __future__ import annotations

import json
from pathlib import Path

from meshnode.base.files import read_given
from meshnode.base.limits import MAX_SETTINGS, MAX_TICKET_SEEDS
from meshnode.base.refusals import refusal
from meshnode.base.value import value
from meshnode.base.wire import WireError
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity import keyfile
from meshnode.identity.keys import Identity
from meshnode.identity.mesh_file import KEY_PREFIX
from meshnode.identity.node_id import NodeId
from meshnode.trust.authority import pack_chain, parse_chain
from meshnode.trust.chain import Chain
from meshnode.trust.rotation import Rotation, open_rotation

MESH_FILE, GRANT_FILE, AUTHORITY_FILE = "mesh.json", "grant", "authority.key"
ROTATION_FILE = "mesh.rotation"
PASSPHRASE_VARIABLE = "MESHNODE_AUTHORITY_PASSPHRASE"
DAMAGED = "restore it from a backup, or remove it and join again with a ticket"


@value
class HomeMesh:
    """The mesh that a home is in.

    Attributes:
        name: For people.
        key: Its secret, as the setting ``mesh`` has it.
        authority: The key at which its grants begin.
        seeds: Nodes to begin with, each ``ID@HOST:PORT``.
    """

    name: str
    key: str
    authority: NodeId
    seeds: tuple[str, ...] = ()


def save_mesh(home: Path, mesh: HomeMesh) -> None:
    """Write the mesh of a home.

    Raises KeyFileError.
    """
    keyfile.write_secret(home / MESH_FILE, packed_mesh(mesh))


def packed_mesh(mesh: HomeMesh) -> bytes:
    """Return the contents of the file."""
    said = {"name": mesh.name, "key": mesh.key, "authority": str(mesh.authority), "seeds": list(mesh.seeds)}
    return json.dumps(said, indent=1).encode() + b"\n"


def load_rotation(home: Path, authority: NodeId) -> Rotation | None:
    """Return the newest rotation that a home knows; None without one.

    Raises ConfigError: what is there is none of this authority, and the secret of the mesh is not known.
    """
    data = _read(home / ROTATION_FILE)
    if data is None:
        return None
    found = open_rotation(data, authority)
    if found is None:
        raise ConfigError(f"{home / ROTATION_FILE} is damaged, or another mesh's", hint=DAMAGED)
    return found


def drop_rotation(home: Path) -> None:
    """Forget the rotation that a home knows, damaged or not: it gets another secret.

    Raises ConfigError.
    """
    try:
        for name in (ROTATION_FILE, f"{ROTATION_FILE}.damaged"):
            (home / name).unlink(missing_ok=True)
    except OSError as error:
        reason, hint = refusal(error, home / ROTATION_FILE)
        raise ConfigError(f"cannot remove {home / ROTATION_FILE}: {reason}", hint=hint) from error


def save_rotation(home: Path, rotation: Rotation) -> None:
    """Write a rotation.

    Raises KeyFileError.
    """
    keyfile.write_secret(home / ROTATION_FILE, rotation.encoded)


def load_mesh(home: Path) -> HomeMesh | None:
    """Return the mesh of a home; None where it is in none.

    Raises ConfigError.
    """
    data = _read(home / MESH_FILE)
    if data is None:
        return None
    try:
        said = json.loads(data)
        name, key, seeds = said["name"], said["key"], said["seeds"]
        texts = [name, key, *seeds]
        if not all(isinstance(text, str) for text in texts) or not key.startswith(KEY_PREFIX):
            raise ValueError("wrong fields")
        return HomeMesh(name, key, NodeId.parse(said["authority"]), tuple(seeds[:MAX_TICKET_SEEDS]))
    except (ValueError, LookupError, TypeError, InvalidId) as error:
        raise ConfigError(f"{home / MESH_FILE} is damaged", hint=DAMAGED) from error


def save_chain(home: Path, chain: Chain) -> None:
    """Write the node's grants.

    Raises KeyFileError.
    """
    keyfile.write_secret(home / GRANT_FILE, pack_chain(chain))


def load_chain(home: Path) -> Chain:
    """Return the node's grants; none where there is no file.

    Raises ConfigError.
    """
    return read_chain(home / GRANT_FILE)


def read_chain(path: Path) -> Chain:
    """Return the grants in a file; none where there is no file.

    Raises ConfigError.
    """
    data = _read(path)
    if data is None:
        return ()
    try:
        return parse_chain(data)
    except WireError as error:
        raise ConfigError(f"{path} holds no grant", hint=DAMAGED) from error


def save_authority(home: Path, identity: Identity, passphrase: str | None) -> None:
    """Write the authority's key, encrypted where there is a passphrase.

    Raises KeyFileError.
    """
    keyfile.save(home / AUTHORITY_FILE, identity, passphrase)


def load_authority(home: Path, passphrase: str | None, given: str | None = None) -> Identity | None:
    """Return the authority's key: ``given`` (from the environment), or that of a home; None where there is none.

    Raises KeyFileError: it is damaged, readable by others, or its passphrase is missing or wrong.
    """
    if given is not None:
        return keyfile.given_key(given)
    path = home / AUTHORITY_FILE
    return keyfile.load(path, passphrase, PASSPHRASE_VARIABLE) if path.exists() else None


def _read(path: Path) -> bytes | None:
    try:
        return read_given(path, MAX_SETTINGS)[0]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason, hint = refusal(error, path)
        raise ConfigError(f"cannot read {path}: {reason}", hint=hint) from error
