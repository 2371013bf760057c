"""Relays in a node: the reservations that we hold, and those that we grant when we are a relay ourselves.

A client's reservation rides on its ordinary QUIC connection to the relay, which keeps it alive, moves it and ends it.
Frames travel beside that connection, to wherever its path goes, so carrying one costs no QUIC work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.base.address import Addr, is_dialable, pack_addr, relay_of, relayed, tunnel, unpack_addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import HOME_RELAYS, MAX_RELAYS_HELD, MAX_RELAYS_LOST, RELAY_RETRY_S
from meshnode.base.metrics import describe
from meshnode.errors import InvalidId, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointKind
from meshnode.paths.candidate import Connectivity
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame as Control
from meshnode.relay.frames import (
    DOWN,
    FRAME_OVERHEAD,
    KEY_LENGTH,
    RESERVATION_LENGTH,
    UP,
    label,
    make_frame,
    parse_frame,
    proven,
)
from meshnode.relay.server import RelayServer, Reservation
from meshnode.stack.session import Session

if TYPE_CHECKING:
    from meshnode.stack.peer_table import PeerTable

KEEP_S = 1.0
CAPABILITY = "relay"
TUNNEL = "wss"  # capability: listens for WebSockets on TCP, at the ports where it listens on UDP

BAD_FRAME = describe("drop_relay_frame", "relay frames dropped: malformed, of no reservation, or not proven")
NO_RELAY = describe("relay_unreachable", "datagrams dropped: no path to the relay, or from it to the receiver")
BAD_CONTROL = describe("drop_relay_control", "relay control frames dropped: malformed or not asked for")
HELD = describe("relay_reservations", "reservations that relays have granted us")
TOO_OFTEN = describe("introductions_too_often", "introductions ignored: one of that peer came just before")
INTRODUCTIONS = describe("introductions", "times that a relay told us to probe a peer, and where")


@dataclass(slots=True)
class Holding:
    """A reservation of ours; without a key it is only asked for."""

    relay: NodeId
    reservation: bytes = b""
    key: bytes = b""

    @property
    def granted(self) -> bool:
        """True once the relay has said yes."""
        return bool(self.key)


class RelayClient:
    """Both sides of relaying. ``homes`` are the relays that our record names."""

    def __init__(self, peers: PeerTable, deliver: Callable[[bytes, Addr, float], None]) -> None:
        ports = peers.ports
        self.homes: tuple[NodeId, ...] = ()
        self.server: RelayServer | None = None
        if ports.settings.relay:
            now = ports.clock.monotonic()
            self.server = RelayServer(ports.settings.relay_limits, ports.relay_allow, ports.entropy, ports.metrics, now)
        self._peers = peers
        self._ports = ports
        self._deliver = deliver
        self._holdings: dict[NodeId, Holding] = {}
        self._by_text: dict[str, Holding] = {}
        self._by_reservation: dict[bytes, Holding] = {}
        self._retry: BoundedDict[NodeId, float] = BoundedDict(MAX_RELAYS_LOST)
        self._outbox: dict[Addr, list[bytes]] = {}
        self._keep_at: float | None = None

    # ---- which relays

    def known(self) -> list[NodeId]:
        """Who may be a relay for us: the configured seeds, and peers that say so."""
        found = dict.fromkeys(self._peers.finder.hints)
        for peer in self._peers.sessions:
            record = self._peers.finder.cached(peer)
            if record is not None and CAPABILITY in record.capabilities:
                found[peer] = None
        return list(found)

    def wake(self, now: float) -> None:
        """Something changed that may matter: look at the relays at the next tick."""
        self._keep_at = now

    def uses(self, peer: NodeId) -> bool:
        """True when a connection to ``peer`` carries our reservation there, or its here."""
        return peer in self._holdings or (self.server is not None and self.server.serves(peer))

    def next_deadline(self) -> float | None:
        """When the relays are looked at next."""
        return self._keep_at

    def tick(self, now: float) -> bool:
        """Keep reservations at two relays; True when ``homes`` has changed."""
        if self._keep_at is None or self._keep_at > now:
            return False
        self._keep_at = now + KEEP_S if self._ports.settings.use_relays else None
        if not self._ports.settings.use_relays:
            return False
        for relay in [r for r, h in self._holdings.items() if h.granted and not self._works(r)]:
            self._lose(relay, now)  # another may take its place; it is asked again when it answers
        if self.server is None:
            for relay in self.known():
                if len(self._holdings) >= HOME_RELAYS + 1:
                    break
                if relay not in self._peers.sessions or self._works(relay):
                    self.hold(relay, now)
        usable = {r: self._rtt(r) for r, h in self._holdings.items() if h.granted and self._works(r)}
        kept = [r for r in self.homes if r in usable]
        for relay in sorted((r for r in usable if r not in kept), key=lambda r: usable[r]):
            if len(kept) < HOME_RELAYS and self.server is None and relay in self.known():
                kept.append(relay)
        changed = tuple(kept) != self.homes
        self.homes = tuple(kept)
        return changed

    def _works(self, relay: NodeId) -> bool:
        session = self._peers.sessions.get(relay)
        if session is None or session.paths.connectivity is Connectivity.SUSPENDED:
            return False
        return session.paths.active is not None and not session.paths.active.is_relayed  # no relay through a relay

    def _rtt(self, relay: NodeId) -> float:
        connection = self._peers.sessions[relay].connection
        rtt = connection.engine.rtt() if connection is not None else None
        return rtt if rtt is not None else 10.0

    def hold(self, relay: NodeId, now: float) -> None:
        """Get a reservation at this relay, unless there is one or it was refused lately."""
        if relay in self._holdings or relay == self._ports.identity.id or self._retry.get(relay, 0.0) > now:
            return
        if len(self._holdings) >= MAX_RELAYS_HELD:
            return
        self._holdings[relay] = self._by_text[str(relay)] = Holding(relay)

        def answer(result: Connection | MeshError) -> None:
            if isinstance(result, MeshError):
                self._lose(relay, self._ports.clock.monotonic())
            else:
                result.send_frame(Control.RELAY_ASK)

        self._peers.connect(relay, now, answer)

    def _lose(self, relay: NodeId, now: float) -> None:
        holding = self._holdings.pop(relay, None)
        if holding is None:
            return
        self._by_text.pop(str(relay), None)
        self._by_reservation.pop(holding.reservation, None)
        self._retry[relay] = now + RELAY_RETRY_S
        for session in self._peers.sessions.values():
            session.paths.drop_candidate(relayed(str(relay)))
        self.wake(now)

    def offer(self, session: Session, now: float) -> None:
        """Give a session's paths the relays that its peer's record names."""
        record = self._peers.finder.cached(session.peer)
        if record is None or not self._ports.settings.use_relays:
            return
        if TUNNEL in record.capabilities:
            hosts = [e.addr for e in record.endpoints if e.kind in (EndpointKind.HOST, EndpointKind.MAPPED)][:2]
            hosts = [addr for addr in hosts if self._peers.here.believes(addr)]
            tunnels = [tunnel(str(record.id), addr.host, addr.port) for addr in hosts]
            session.paths.add_candidates([(addr, "record") for addr in tunnels if "%" not in addr.host], now)
        for relay in record.relays:
            holding = self._holdings.get(relay)
            if holding is not None and holding.granted:
                session.paths.add_candidates([(relayed(str(relay)), "relay")], now)
            elif relay not in (self._ports.identity.id, session.peer):
                self.hold(relay, now)

    # ---- connections come, speak and go

    def on_closed(self, peer: NodeId, now: float) -> None:
        """The connection to ``peer`` is over."""
        if self.server is not None:
            self.server.release(peer)
        if peer in self._holdings:
            self._lose(peer, now)
            self._retry[peer] = now + KEEP_S

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """A relay control frame came; others are ignored, so that later versions can add some."""
        try:
            if fields[0] == Control.RELAY_ASK:
                self._on_ask(connection, now)
            elif fields[0] == Control.RELAY_GRANT:
                self._on_grant(connection.peer, fields, now)
            elif fields[0] == Control.RELAY_REFUSE:
                self._lose(connection.peer, now)
            elif fields[0] == Control.INTRODUCE:
                self._on_introduce(connection.peer, fields, now)
            elif fields[0] == Control.INTRODUCED:
                self._on_introduced(connection.peer, fields, now)
        except (ValueError, TypeError, InvalidId):
            self._ports.metrics.count(BAD_CONTROL)

    def _on_ask(self, connection: Connection, now: float) -> None:
        if self.server is None:
            connection.send_frame(Control.RELAY_REFUSE, "this node is no relay")
            return
        granted = self.server.reserve(connection.peer, now)
        if isinstance(granted, Reservation):
            connection.send_frame(Control.RELAY_GRANT, granted.id, granted.key)
        else:
            connection.send_frame(Control.RELAY_REFUSE, granted)

    def _on_grant(self, relay: NodeId, fields: list[object], now: float) -> None:
        _, reservation, key = fields
        holding = self._holdings.get(relay)
        if holding is None or not isinstance(reservation, bytes) or not isinstance(key, bytes):
            raise ValueError("not asked for, or malformed")
        if len(reservation) != RESERVATION_LENGTH or len(key) != KEY_LENGTH:
            raise ValueError("wrong lengths")
        holding.reservation, holding.key = reservation, key
        self._by_reservation[reservation] = holding
        self._ports.metrics.count(HELD)
        for session in list(self._peers.sessions.values()):
            record = self._peers.finder.cached(session.peer)
            if record is not None and relay in record.relays:
                session.paths.add_candidates([(relayed(str(relay)), "relay")], now)
                self._peers.meeting.begin(session, now)
                self._peers.probing.drain(session, now)
        self.wake(now)

    # ---- introductions

    def ask_introduction(self, session: Session) -> None:
        """Have the relay in use tell both ends as which addresses it sees them."""
        active = session.paths.active
        if active is None or not active.is_relayed or session.connection is None:
            return
        holding = self._by_text.get(relay_of(active))
        relay = self._peers.sessions.get(holding.relay) if holding is not None else None
        if relay is not None and relay.connection is not None:
            relay.connection.send_frame(Control.INTRODUCE, bytes(session.peer))

    def _on_introduce(self, asker: NodeId, fields: list[object], now: float) -> None:
        _, raw = fields
        if self.server is None or not isinstance(raw, bytes):
            raise ValueError("not a relay, or malformed")
        other = NodeId(raw)
        legs = [self._peers.sessions.get(peer) for peer in (asker, other)]
        one, two = legs
        if one is None or two is None or not self.server.may_introduce(asker, other, now):
            return
        seen = [one.paths.active, two.paths.active]
        trips = [(leg.connection.engine.rtt() or 0.0) if leg.connection is not None else 0.0 for leg in (one, two)]
        if seen[0] is None or seen[1] is None or not (seen[0].is_udp and seen[1].is_udp):
            return
        for leg, peer, addr, rtt in ((one, other, seen[1], trips[0]), (two, asker, seen[0], trips[1])):
            if leg.connection is not None:  # the nearer one waits, so that both begin together
                delay_ms = int((max(trips) - rtt) / 2 * 1000)
                leg.connection.send_frame(Control.INTRODUCED, bytes(peer), pack_addr(addr), delay_ms)

    def _on_introduced(self, relay: NodeId, fields: list[object], now: float) -> None:
        _, raw, packed, delay_ms = fields
        if not isinstance(raw, bytes) or not isinstance(packed, bytes) or type(delay_ms) is not int:
            raise ValueError("malformed")
        addr = unpack_addr(packed)
        session = self._peers.sessions.get(NodeId(raw))
        holding = self._holdings.get(relay)
        talking = session is not None and (session.connection or session.dial) is not None
        if session is None or not talking or holding is None or not holding.granted:
            raise ValueError("not asked for: no connection with that peer, or no reservation there")
        if not is_dialable(addr) or not 0 <= delay_ms <= 1000:
            raise ValueError("nobody can be there")
        if self._peers.searching.too_soon(session.peer, now):
            self._ports.metrics.count(TOO_OFTEN)
            return
        self._ports.metrics.count(INTRODUCTIONS)
        begin = now + delay_ms / 1000
        session.paths.introduced(addr, begin, now)
        self._peers.searching.introduced(session, addr, begin, now)
        self._peers.probing.drain(session, now)
        self._peers.arm(session)

    # ---- frames

    def wrap(self, peer: NodeId, addr: Addr, datagrams: list[bytes]) -> tuple[Addr, list[bytes]] | None:
        """Return where frames for ``peer`` go, and the frames; None when the relay is not at hand."""
        holding = self._by_text.get(relay_of(addr))
        session = self._peers.sessions.get(holding.relay) if holding is not None and holding.granted else None
        active = session.paths.active if session is not None else None
        if holding is None or active is None or active.is_relayed:
            self._ports.metrics.count(NO_RELAY, len(datagrams))
            return None
        to = label(peer)
        return active, [make_frame(holding.key, UP, holding.reservation, to, inner) for inner in datagrams]

    def on_frame(self, data: bytes, now: float) -> None:
        """A relay frame came: forward it when we are its relay, open it when it is for us."""
        frame = parse_frame(data)
        if frame is None:
            self._ports.metrics.count(BAD_FRAME)
        elif self.server is not None and self.server.knows(frame.reservation):
            forwarded = self.server.forward(frame, now)
            if forwarded is not None:
                self._pass_on(*forwarded)
        else:
            holding = self._by_reservation.get(frame.reservation)
            nested = frame.inner[0] == data[0]
            if holding is None or nested or not proven(frame, holding.key, DOWN):
                self._ports.metrics.count(BAD_FRAME)
            else:
                self._deliver(frame.inner, relayed(str(holding.relay)), now)

    def _pass_on(self, to: NodeId, frame: bytes) -> None:
        session = self._peers.sessions.get(to)
        active = session.paths.active if session is not None else None
        if active is None or active.is_relayed:
            self._ports.metrics.count(NO_RELAY)
            return
        self._outbox.setdefault(active, []).append(frame)

    def flush(self) -> None:
        """Send what was forwarded since the last time, in batches."""
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            for addr, frames in outbox.items():
                if not self._ports.link.send(addr, frames):
                    self._ports.metrics.count(NO_RELAY, len(frames))

    def suspect(self, addr: Addr | None, now: float) -> None:
        """Somebody left this relayed path because it was silent: see whether the relay itself lives."""
        holding = self._by_text.get(relay_of(addr)) if addr is not None and addr.is_relayed else None
        session = self._peers.sessions.get(holding.relay) if holding is not None else None
        if session is not None and session.connection is not None:
            self._peers.probing.ping(session.connection, 1.0, now, lambda _: None)

    def status(self) -> dict[str, object]:
        """What a person wants to know of the relays; plain JSON."""
        found: dict[str, object] = {
            "held": [
                {"relay": str(h.relay), "granted": h.granted, "home": h.relay in self.homes}
                for h in self._holdings.values()
            ],
            "overhead_bytes": FRAME_OVERHEAD,
        }
        if self.server is not None:
            found["clients"] = len(self.server)
        return found
