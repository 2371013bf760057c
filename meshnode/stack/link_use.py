"""Which connections only gossip wanted: one is closed when both ends say that they need it no longer."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SESSIONS
from meshnode.base.metrics import describe
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import CloseCode, Frame
from meshnode.stack.context import Context

RELEASED = describe("gossip_released", "connections closed that neither end needed any longer")


class LinkUse:
    """The use of connections; ``wanted`` tells of a peer whether gossip itself has use for the one with it."""

    def __init__(self, context: Context, wanted: Callable[[NodeId], bool]) -> None:
        self._context = context
        self._wanted = wanted
        self._used: BoundedDict[NodeId, None] = BoundedDict(MAX_SESSIONS)  # peers that the application asked for
        self._said: dict[NodeId, None] = {}  # peers that were told that this end does not need the connection
        self._heard: dict[NodeId, None] = {}  # peers that said so

    def is_used(self, peer: NodeId) -> bool:
        """Return whether the application has use for a connection to ``peer``, or a relayed path if it is no seed.

        Gossip's own use does not count, nor that of seeds as relays: all are told where those are.
        """
        is_seed = peer in self._context.records.hints
        return peer in self._used or (self._context.relays.uses(peer) and not is_seed)

    def add(self, peer: NodeId) -> None:
        """Keep the connection to ``peer`` until it is over: the application asked for it.

        Gossip does not close it then.
        """
        self._used[peer] = None
        if peer in self._said and (connection := self._connection(peer)) is not None:
            del self._said[peer]
            connection.send_frame(Frame.GOSSIP_IDLE, False)

    def on_link(self, peer: NodeId, up: bool) -> None:
        """Forget what was told on the connection before."""
        self._said.pop(peer, None)
        self._heard.pop(peer, None)
        if not up:
            self._used.pop(peer, None)

    def on_idle(self, peer: NodeId, idle: bool) -> None:
        """Take note that the other end needs the connection no longer, or needs it again."""
        if idle:
            self._heard[peer] = None
            self.close_if_idle(peer)
        else:
            self._heard.pop(peer, None)

    def close_if_idle(self, peer: NodeId) -> None:
        """Tell the peer when this end does not need the connection; close it when neither end does.

        Nothing happens while the application, a relay or gossip itself uses it.
        """
        connection = self._connection(peer)
        if connection is None or connection.streams or peer in self._used or self._wanted(peer):
            return
        if self._context.relays.uses(peer):
            return
        if peer not in self._said:
            self._said[peer] = None
            connection.send_frame(Frame.GOSSIP_IDLE, True)
        if peer in self._heard and connection.dialler:
            self._context.metrics.count(RELEASED)
            connection.close(CloseCode.NORMAL, "no longer neighbours")

    def _connection(self, peer: NodeId) -> Connection | None:
        connection = self._context.peers.connection(peer)
        return connection if connection is not None and connection.state is State.READY else None
