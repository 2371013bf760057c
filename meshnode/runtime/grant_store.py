"""What a node keeps of its mesh over restarts: renewed grants, uses of invitations, the next secret."""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from pathlib import Path

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_GRANT, MAX_SUCCESSORS
from meshnode.base.wire import as_bytes, as_list, decode, encode
from meshnode.errors import ConfigError
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import MeshKey
from meshnode.runtime.state_files import MAX_STATE, StateFiles
from meshnode.stack.component import Secrets
from meshnode.stack.stack import Stack
from meshnode.trust.authority import pack_chain
from meshnode.trust.chain import Chain
from meshnode.trust.home_mesh import (
    GRANT_FILE,
    MESH_FILE,
    ROTATION_FILE,
    HomeMesh,
    load_chain,
    load_mesh,
    packed_mesh,
)
from meshnode.trust.redemptions import Uses
from meshnode.trust.rotation import Rotation, open_rotation
from meshnode.trust.successors import Share

log = logging.getLogger("meshnode.node")

MAX_OWN_GRANTS = 8  # that may be in the file: what was there, and what is written later than it was renewed
INVITES_FILE, SUCCESSIONS_FILE = "invitations.json", "successions"


class GrantStore:
    """Restores and saves; the stack's components call it."""

    def __init__(self, stack: Stack, state: StateFiles, now: float) -> None:
        context = stack.context
        standings, keys, authority = context.standings, context.mesh_keys, context.settings.authority
        self._redemptions = standings.redemptions
        self._state = state
        self._redemptions.restore(state.read(INVITES_FILE, _parse) or {})
        self._redemptions.on_new = self._save_uses
        standings.on_own = self._save_own
        successors = context.successors
        successors.restore(state.read(SUCCESSIONS_FILE, _parse_successions) or ())
        successors.on_said = lambda: state.save(SUCCESSIONS_FILE, encode(successors.saved()))
        ours = {pack_chain(chain): None for chain in ((), context.grants)}
        self._own: BoundedDict[bytes, None] = BoundedDict(MAX_OWN_GRANTS, ours)
        if authority is not None:
            encoded = state.read(ROTATION_FILE, partial(_parse_rotation, authority))
            if encoded is not None:
                keys.adopt(encoded, now)
        keys.on_adopted = self._save_rotation
        if authority is not None and stack.context.settings.needs_grant and standings.own() is None:
            log.warning("this node has no grant that holds: no node of its mesh admits it; join with a ticket")

    def _save_own(self, chain: Chain) -> None:
        data = pack_chain(chain)
        self._own.put(data, None)
        self._state.save(GRANT_FILE, data, self._is_own)

    def _is_own(self) -> bool:
        """Return whether the grants in the home are this process's, or lost: those that a person put there stay."""
        try:
            return pack_chain(load_chain(self._state.home)) in self._own
        except ConfigError:
            return True

    def _save_uses(self) -> None:
        self._state.save(INVITES_FILE, json.dumps(self._redemptions.saved()).encode())

    def _save_rotation(self, rotation: Rotation, before: MeshKey) -> None:
        """Save a rotation, and first the secret that it follows: what is read at the next start belongs together."""
        try:
            mesh = load_mesh(self._state.home)
        except ConfigError:
            mesh = None
        if mesh is not None and mesh.key != str(before):
            self._state.save(MESH_FILE, packed_mesh(HomeMesh(mesh.name, str(before), mesh.authority, mesh.seeds)))
        self._state.save(ROTATION_FILE, rotation.encoded)


def secret_lost(home: Path, keys: Secrets) -> list[str]:
    """Return that the mesh's next secret is lost, in words, until a peer has told it or the home has joined."""
    name = f"{ROTATION_FILE}.damaged"
    if keys.held is not None or not os.path.lexists(home / name):
        return []
    lost = f"{ROTATION_FILE} was damaged, and is kept as {name}: this node has the mesh's secret of before"
    return [f"{lost}, and is a stranger once others take that no more; join again with a new ticket"]


def _parse(data: bytes) -> dict[str, Uses]:
    return {
        str(name): Uses(str(said["share"]), int(said["ends"]), tuple(NodeId.parse(text) for text in said["keys"]))
        for name, said in json.loads(data).items()
    }


def _parse_rotation(authority: NodeId, data: bytes) -> bytes:
    if open_rotation(data, authority) is None:
        raise ValueError("it is not of this mesh's authority")
    return data


def _parse_successions(data: bytes) -> list[tuple[bytes, Share]]:
    found = []
    for item in as_list(decode(data, MAX_STATE), 2 * MAX_SUCCESSORS):
        encoded, first, second = item if isinstance(item, list) else (item, "", "")  # as they were saved at first
        found.append((as_bytes(encoded, 1, MAX_GRANT), (str(first), str(second))))
    return found
