"""The next secret of the mesh on its way to all members whose grants hold, and the change from one key to the other.

Each connection tells it when it begins, and again when there is a newer one; a node that was away for all of the
overlap has only the old key and needs a new ticket. Connections do not notice: only datagrams beside them are sealed.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GRANTS_BURST, GRANTS_PER_S, MAX_SESSIONS
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import MeshKey
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.trust.rotation import Rotation, open_rotation

ROTATED = describe("mesh_keys_adopted", "next secrets of the mesh that were taken")
BAD = describe("drop_mesh_key", "next secrets dropped: not the authority's, of before, or too many")


class MeshKeyLink(Component):
    """Holds the newest rotation, spreads it, and has the sealer follow it."""

    frames = (Frame.MESH_KEY,)

    def __init__(self, context: Context) -> None:
        self.held: Rotation | None = None
        self.on_adopted: Callable[[Rotation, MeshKey], None] = lambda rotation, before: None
        self._context = context
        self._before = context.sealer.mesh
        self._paces: BoundedDict[NodeId, TokenBucket] = BoundedDict(MAX_SESSIONS)
        self._timer = context.timers.timer(self._follow)

    def adopt(self, encoded: bytes, now: float, *, by_peer: bool = False) -> bool:
        """Take a rotation, and spread it; False when it is not the authority's, or not newer than another.

        One that is over is taken ``by_peer`` only where it has led to the secret of now: an honest peer has that too,
        so another one is of before, and would make a newcomer, which has heard of none, a stranger to all others.
        """
        authority = self._context.settings.authority
        found = open_rotation(encoded, authority) if authority is not None else None
        if found is None or (self.held is not None and found.serial <= self.held.serial):
            return False
        if by_peer and found.is_over(self._context.clock.wall()) and found.key != self._context.sealer.mesh.bytes:
            return False
        if self.held is not None:
            self._before = self._context.sealer.mesh
        self.held = found
        self._context.metrics.count(ROTATED)
        self._follow(now)
        self.on_adopted(found, self._before)
        for session in list(self._context.peers.sessions.values()):
            if session.connection is not None:
                self._tell(session.connection)
        return True

    def _follow(self, now: float) -> None:
        """Seal and open with the keys of this time."""
        held, wall = self.held, self._context.clock.wall()
        if held is None:
            return
        old, new = self._before, MeshKey(held.key)
        if held.is_over(wall):
            self._context.sealer.use_keys(new, None)
            return
        if held.has_begun(wall):
            self._context.sealer.use_keys(new, old)
        else:
            self._context.sealer.use_keys(old, new)
        until = held.ends if held.has_begun(wall) else held.begins
        self._timer.set(now + max(0.0, until / 1000 - wall) + 0.001)

    def on_clock_set(self, now: float) -> None:
        """Reckon with the new time."""
        self._follow(now)

    def _tell(self, connection: Connection) -> None:
        if self.held is not None and self._context.standings.standing(connection.peer) is not None:
            connection.send_frame(Frame.MESH_KEY, self.held.encoded)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Tell a new peer."""
        if up:
            self._tell(connection)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Take what a peer has; the same again costs nothing."""
        encoded, peer = fields[1] if len(fields) == 2 else None, connection.peer
        if self.held is not None and encoded == self.held.encoded:
            return
        pace = self._paces.get(peer)
        if pace is None:
            pace = self._paces[peer] = TokenBucket(GRANTS_PER_S, GRANTS_BURST, now)
        if not isinstance(encoded, bytes) or not pace.take(1, now) or not self.adopt(encoded, now, by_peer=True):
            self._context.metrics.count(BAD)
