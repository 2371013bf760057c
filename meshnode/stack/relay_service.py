"""A node as a relay for others: grants reservations, carries frames, introduces two clients to each other."""

from __future__ import annotations

from meshnode.base.address import Addr, pack_addr
from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import Groups
from meshnode.base.path import Hop, ViaRelay, udp_address
from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.paths.effects import Switched
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame as Control
from meshnode.relay.frames import BAD_CONTROL, NO_RELAY, Frame
from meshnode.relay.server import RelayServer, Reservation
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.session import Session


class RelayService(Component):
    """Runs the relay's core where the settings ask for it; elsewhere it refuses what it is asked."""

    frames = (Control.RELAY_ASK, Control.INTRODUCE)

    def __init__(self, context: Context) -> None:
        self.server: RelayServer | None = None
        if context.settings.relay:
            now, limits = context.clock.monotonic(), context.settings.relay_limits
            self.server = RelayServer(limits, context.guard.relays, context.entropy, context.metrics, now)
        self._context = context
        self._outbox: dict[Hop, list[bytes]] = {}
        context.access_changed.append(self._look)

    def serves(self, peer: NodeId) -> bool:
        """True when ``peer`` holds a reservation here."""
        return self.server is not None and self.server.serves(peer)

    def clients(self) -> int:
        """Return how many nodes hold a reservation here."""
        return len(self.server) if self.server is not None else 0

    def _look(self, now: float) -> None:
        """End the reservations of clients that may use this relay no longer."""
        for client in self.server.clients() if self.server is not None else ():
            if not self._context.guard.relays(client):
                self._release(client)

    def _release(self, client: NodeId) -> None:
        assert self.server is not None
        self.server.release(client)
        connection = self._context.peers.connection(client)
        if connection is not None:
            connection.send_frame(Control.RELAY_REFUSE, "this relay does not serve you any more")

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """End a reservation with its client's connection."""
        if not up and self.server is not None:
            self.server.release(connection.peer)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Handle a control frame of a client."""
        try:
            if fields[0] == Control.RELAY_ASK:
                self._on_ask(connection, now)
            else:
                self._on_introduce(connection.peer, fields, now)
        except (ValueError, TypeError, InvalidId):
            self._context.metrics.count(BAD_CONTROL)

    def _on_ask(self, connection: Connection, now: float) -> None:
        if self.server is None:
            connection.send_frame(Control.RELAY_REFUSE, "this node is no relay")
            return
        granted, gone = self.server.reserve(connection.peer, self._groups_of(connection.peer), now)
        if isinstance(granted, Reservation):
            connection.send_frame(Control.RELAY_GRANT, granted.id, granted.key)
        else:
            connection.send_frame(Control.RELAY_REFUSE, granted)
        displaced = self._context.peers.connection(gone) if gone is not None else None
        if displaced is not None:
            displaced.send_frame(Control.RELAY_REFUSE, "this relay is full")

    def on_switched(self, session: Session, switched: Switched, now: float) -> None:
        """Count a client that has moved as one of the network where it is."""
        if self.server is not None:
            self.server.moved(session.peer, path_shares(switched.new), now)

    def _groups_of(self, peer: NodeId) -> Groups:
        session = self._context.peers.sessions.get(peer)
        path = session.paths.active if session is not None else None
        return path_shares(path) if path is not None else (None,) * 3

    def _on_introduce(self, asker: NodeId, fields: list[object], now: float) -> None:
        _, raw = fields
        if self.server is None or not isinstance(raw, bytes):
            raise ValueError("not a relay, or malformed")
        other = NodeId(raw)
        one, two = (self._context.peers.sessions.get(peer) for peer in (asker, other))
        if one is None or two is None or not self.server.may_introduce(asker, other, now):
            return
        here, there = _seen(one), _seen(two)
        if here is not None and there is not None:
            (one_at, one_trip), (two_at, two_trip) = here, there
            later = max(one_trip, two_trip)  # the nearer one waits, so that both begin together
            _introduce(one, other, two_at, later - one_trip)
            _introduce(two, asker, one_at, later - two_trip)

    # ---- frames

    def carry(self, frame: Frame, now: float) -> bool:
        """Forward a frame of a reservation that was granted here; False when it is none."""
        if self.server is None or not self.server.knows(frame.reservation):
            return False
        forwarded = self.server.forward(frame, now)
        if forwarded is not None:
            self._pass_on(*forwarded)
        return True

    def _pass_on(self, to: NodeId, frame: bytes) -> None:
        session = self._context.peers.sessions.get(to)
        active = session.paths.active if session is not None else None
        if active is None or isinstance(active, ViaRelay):
            self._context.metrics.count(NO_RELAY)
            return
        self._outbox.setdefault(active, []).append(frame)
        self._context.dirty[self] = None

    def flush(self, now: float) -> None:
        """Send what was forwarded since the last time, in batches."""
        outbox, self._outbox = self._outbox, {}
        for path, frames in outbox.items():
            self._context.sender.forward(path, frames)


def _seen(session: Session) -> tuple[Addr, float] | None:
    """Return where the relay sees a client, and the round trip to it; None when that is no UDP address."""
    active = session.paths.active
    seen = udp_address(active) if active is not None else None
    if seen is None:
        return None
    return seen, (session.connection.engine.rtt() or 0.0) if session.connection is not None else 0.0


def _introduce(to: Session, peer: NodeId, at: Addr, difference: float) -> None:
    if to.connection is not None:
        to.connection.send_frame(Control.INTRODUCED, bytes(peer), pack_addr(at), int(difference / 2 * 1000))
