"""The peers that a node keeps state for: sessions by id, connections by connection id and by tag. Data only."""

from __future__ import annotations

from meshnode.identity.node_id import NodeId
from meshnode.nat.local_networks import LocalNetworks
from meshnode.quic.connection import Connection
from meshnode.stack.half_open import HalfOpen
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
        return self.session_of.pop(connection, None)

    def retire_cid(self, connection: Connection, cid: bytes) -> None:
        """Route this connection id no more."""
        if self.by_cid.get(cid) is connection:
            del self.by_cid[cid]

    def connection(self, peer: NodeId) -> Connection | None:
        """Return the peer's ready connection; None when there is none."""
        session = self.sessions.get(peer)
        return session.connection if session is not None else None

    def set_here(self, here: LocalNetworks) -> None:
        """Tell every peer's paths which networks this host is on."""
        self.here = here
        for session in self.sessions.values():
            session.paths.book.here = here
