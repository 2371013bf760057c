"""Messages of the DHT on their way to peers: by which path each goes, and what an answer to one proves.

A peer that this node is connected with by a detour (a relay, a tunnel, an extra socket) is asked by that detour. Its
answer then says nothing of the address that its record names, so the address earns no credit by it.
"""

from __future__ import annotations

from meshnode.base.address import NOWHERE, Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SESSIONS
from meshnode.discovery.dht import Proven, SendSealed
from meshnode.identity.node_id import NodeId
from meshnode.stack.address_credit import Cause
from meshnode.stack.context import Context

NEVER = float("-inf")


class DhtSending:
    """The DHT's way to the network."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._detoured: BoundedDict[NodeId, float] = BoundedDict(MAX_SESSIONS)  # when a message went by a detour last

    def send(self, message: SendSealed, now: float) -> None:
        """Send a DHT message, by the detour by which this node is connected to that peer, if it is."""
        peer = message.peer
        session = self._context.peers.sessions.get(peer)
        active = session.paths.active if session is not None and session.connection is not None else None
        if active is not None and not isinstance(active, Addr):
            self._detoured.put(peer, now)
            self._context.sender.send_sealed(peer, active, message.body)
        elif message.addr != NOWHERE:
            cause = Cause.PROBE if message.unasked else Cause.ANSWER
            self._context.sender.send_sealed(peer, message.addr, message.body, cause)

    def on_proven(self, proven: Proven, now: float) -> None:
        """Note that a peer receives at an address, unless what it answered went to it by a detour."""
        self._context.sealer.doubt.settle()
        if proven.addr != NOWHERE and self._detoured.get(proven.peer, NEVER) < proven.since:
            self._context.credit.answered(proven.addr, now)
