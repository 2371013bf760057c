"""The peers that a node keeps state for: sessions by id, connections by connection id and by tag. Data only."""

from __future__ import annotations

from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import FairTable, Groups
from meshnode.base.limits import MAX_PEERS_ACCEPTED
from meshnode.base.path import Path
from meshnode.identity.node_id import NodeId
from meshnode.nat.local_networks import LocalNetworks
from meshnode.quic.connection import Connection
from meshnode.quic.packets import FIXED, dcid_of
from meshnode.relay.frames import FRAME_OVERHEAD, RELAYED
from meshnode.stack.half_open import HalfOpen
from meshnode.stack.key_twins import KeyTwins
from meshnode.stack.probe import connection_tag
from meshnode.stack.session import Session


class PeerTable:
    """All sessions and their connections; bounded by ``MAX_SESSIONS``, in ``Connections.session``."""

    def __init__(self) -> None:
        self.sessions: dict[NodeId, Session] = {}
        self.by_cid: dict[bytes, Connection] = {}
        self.by_tag: dict[bytes, Connection] = {}
        self.session_of: dict[Connection, Session] = {}
        self.here = LocalNetworks()
        self.half_open = HalfOpen()
        self.twins = KeyTwins()
        self.accepted: FairTable[Connection] = FairTable(MAX_PEERS_ACCEPTED, newest_goes=True)

    def add(self, session: Session, connection: Connection) -> None:
        """Enter a new connection: by its first connection id, and by its tag."""
        self.session_of[connection] = session
        self.by_cid[connection.engine.host_cid] = connection
        self.by_tag[connection_tag(connection)] = connection  # before the Welcome, which may be lost
        if not connection.dialler:
            self.by_cid[connection.engine.odcid] = connection

    def remove(self, connection: Connection) -> Session | None:
        """Forget a connection that is over; returns its session, None when it has been forgotten."""
        for cid in [c for c, owner in self.by_cid.items() if owner is connection]:
            del self.by_cid[cid]
        tag = connection_tag(connection)
        if self.by_tag.get(tag) is connection:
            del self.by_tag[tag]
        self.half_open.discard(connection)
        self.accepted.discard(connection)
        return self.session_of.pop(connection, None)

    def retire_cid(self, connection: Connection, cid: bytes) -> None:
        """Route this connection id no more."""
        if self.by_cid.get(cid) is connection:
            del self.by_cid[cid]

    def owner_of(self, datagram: bytes) -> NodeId | None:
        """Return the peer to whose connection a datagram says that it belongs, inside a relay's frame too."""
        if datagram and datagram[0] == RELAYED:
            datagram = datagram[FRAME_OVERHEAD:]
        if not datagram or not datagram[0] & FIXED:
            return None
        connection = self.by_cid.get(dcid_of(datagram) or b"")
        return connection.peer if connection is not None else None

    def groups_of(self, peer: NodeId) -> Groups:
        """Return the groups of where a peer is now (``path_shares``); the peer itself when it has no path."""
        session = self.sessions.get(peer)
        path = session.paths.active if session is not None else None
        if path is None and session is not None:
            path = next((arrival.source for arrival in session.arrivals.values()), None)
        return path_shares(path) if path is not None else (peer,) * 3

    def connection(self, peer: NodeId) -> Connection | None:
        """Return the peer's ready connection; None when there is none."""
        session = self.sessions.get(peer)
        return session.connection if session is not None else None

    def is_linked(self, peer: NodeId) -> bool:
        """Return whether the peer has a connection with this node, ready or of its own half-open."""
        session = self.sessions.get(peer)
        return session is not None and (session.connection is not None or bool(session.arrivals))

    def paths_in_use(self) -> set[Path | None]:
        """Return the active path of every live connection."""
        return {session.paths.active for session in self.sessions.values() if session.connection is not None}

    def set_here(self, here: LocalNetworks) -> None:
        """Tell every peer's paths which networks this host is on."""
        self.here = here
        for session in self.sessions.values():
            session.paths.book.here = here
