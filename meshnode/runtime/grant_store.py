"""What a node keeps of its mesh over restarts: renewed grants, uses of invitations, the next secret."""

from __future__ import annotations

import json
import logging

from meshnode.base.limits import MAX_GRANT, MAX_SUCCESSORS
from meshnode.base.wire import as_bytes, as_list, decode, encode
from meshnode.errors import ConfigError
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import MeshKey
from meshnode.runtime.state_files import MAX_STATE, StateFiles, read_state
from meshnode.stack.stack import Stack
from meshnode.trust.authority import pack_chain
from meshnode.trust.chain import Chain
from meshnode.trust.home_mesh import (
    GRANT_FILE,
    MESH_FILE,
    ROTATION_FILE,
    HomeMesh,
    load_mesh,
    load_rotation,
    packed_mesh,
)
from meshnode.trust.redemptions import Uses
from meshnode.trust.rotation import Rotation
from meshnode.trust.successors import Share

log = logging.getLogger("meshnode.node")

INVITES_FILE, SUCCESSIONS_FILE = "invitations.json", "successions"


class GrantStore:
    """Restores and saves; the stack's components call it."""

    def __init__(self, stack: Stack, state: StateFiles, now: float) -> None:
        context = stack.context
        standings, keys, authority = context.standings, context.mesh_keys, context.settings.authority
        self._redemptions = standings.redemptions
        self._state = state
        self._redemptions.restore(read_state(state.home / INVITES_FILE, _parse) or {})
        self._redemptions.on_new = self._save_uses
        standings.on_own = self._save_own
        successors = context.successors
        successors.restore(read_state(state.home / SUCCESSIONS_FILE, _parse_successions) or ())
        successors.on_said = lambda: state.save(SUCCESSIONS_FILE, encode(successors.saved()))
        rotation = load_rotation(state.home, authority) if authority is not None else None
        if rotation is not None:
            keys.adopt(rotation.encoded, now)
        keys.on_adopted = self._save_rotation
        if authority is not None and stack.context.settings.needs_grant and standings.own() is None:
            log.warning("this node has no grant that holds: no node of its mesh admits it; join with a ticket")

    def _save_own(self, chain: Chain) -> None:
        self._state.save(GRANT_FILE, pack_chain(chain))

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


def _parse(data: bytes) -> dict[str, Uses]:
    return {
        str(name): Uses(str(said["share"]), int(said["ends"]), tuple(NodeId.parse(text) for text in said["keys"]))
        for name, said in json.loads(data).items()
    }


def _parse_successions(data: bytes) -> list[tuple[bytes, Share]]:
    found = []
    for item in as_list(decode(data, MAX_STATE), 2 * MAX_SUCCESSORS):
        encoded, first, second = item if isinstance(item, list) else (item, "", "")  # as they were saved at first
        found.append((as_bytes(encoded, 1, MAX_GRANT), (str(first), str(second))))
    return found
