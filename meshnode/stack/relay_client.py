"""The relays that a node uses: its reservations, the relayed paths that they give, introductions.

A client's reservation rides on its ordinary QUIC connection to the relay, which keeps it alive, moves it and ends it.
Frames travel beside that connection, to wherever its path goes, so carrying one costs no QUIC work.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshnode.base.address import Addr, unpack_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import FairTable, Groups
from meshnode.base.limits import HOME_RELAYS, INTRODUCED_AGAIN_S, MAX_RELAYS_LOST, MAX_RELAYS_NAMED, RELAY_RETRY_S
from meshnode.base.metrics import describe
from meshnode.base.path import Hop, Path, ViaRelay, ViaTunnel
from meshnode.base.value import state
from meshnode.errors import InvalidId, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointKind, EndpointRecord
from meshnode.paths.effects import Switched
from meshnode.paths.seeking import Connectivity
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame as Control
from meshnode.relay.frames import (
    BAD_CONTROL,
    DOWN,
    FRAME_OVERHEAD,
    KEY_LENGTH,
    NO_RELAY,
    RESERVATION_LENGTH,
    UP,
    label,
    make_frame,
    parse_frame,
    proven,
)
from meshnode.stack.component import Component, tell
from meshnode.stack.context import RELAY, TUNNEL, Context
from meshnode.stack.session import Introduction, Session

LATE_S = 0.1  # a tick that is later than this says nothing of a relay
KEEP_S, SETTLED_S = 1.0, 10.0  # between looks at the relays; the longer while all is granted and heard
ANSWER_S = 5.0  # for a relay to grant or refuse what it was asked for
MAX_RETRY_S = 240.0  # between dials to a relay that does not answer, each of which looks it up with some 70 datagrams

DIALLED, UNASKED = ("dialled",) * 3, ("unasked",) * 3  # groups of peers without a path: of the program, and all others

BAD_FRAME = describe("drop_relay_frame", "relay frames dropped: malformed, of no reservation, or not proven")
HELD = describe("relay_reservations", "reservations that relays have granted")
TOO_OFTEN = describe("introductions_too_often", "introductions ignored: one of that peer came just before")
INTRODUCTIONS = describe("introductions", "times that a relay said where to probe a peer")


@state
class Holding:
    """A reservation of this node at a relay; without a key it is only asked for."""

    relay: NodeId
    reservation: bytes = b""
    key: bytes = b""
    asked: float = float("inf")  # when

    @property
    def granted(self) -> bool:
        """Return whether the relay has granted it."""
        return bool(self.key)


class RelayClient(Component):
    """This node's reservations. ``homes`` are the relays that its record names.

    Those that it asks for itself have places of their own. Ids are free, and a record may name any: what records name
    has other places, which the networks of these records' nodes share.
    """

    frames = (Control.RELAY_GRANT, Control.RELAY_REFUSE, Control.INTRODUCED)

    def __init__(self, context: Context) -> None:
        self.homes: tuple[NodeId, ...] = ()
        self._context = context
        self._timer = context.timers.timer(self._keep)
        self._holdings: dict[NodeId, Holding] = {}
        self._named: FairTable[NodeId] = FairTable(MAX_RELAYS_NAMED, newest_goes=True)  # of those, by peers' records
        self._by_text: dict[str, Holding] = {}
        self._by_reservation: dict[bytes, Holding] = {}
        self._retry: BoundedDict[NodeId, float] = BoundedDict(MAX_RELAYS_LOST)
        self._unreached: BoundedDict[NodeId, float] = BoundedDict(MAX_RELAYS_LOST)  # how long to wait

    # ---- which relays

    def known(self) -> list[NodeId]:
        """Return the nodes that may be a relay for this one.

        They are peers whose records name the capability, and the configured seeds while no record says what they are.
        """
        records = self._context.records
        found: dict[NodeId, None] = {}
        for peer in dict.fromkeys((*records.hints, *self._context.peers.sessions)):
            record = records.cached(peer)
            if RELAY in record.capabilities if record is not None else peer in records.hints:
                found[peer] = None
        return list(found)

    def _wake(self, now: float) -> None:
        """Look at the relays at the next tick: something changed that may matter."""
        self._timer.set(now)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Look at the relays again: a seed may be one."""
        self._wake(now)

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Look more often while a relay is silent."""
        if silent and peer in self._holdings:
            self._timer.set(now + KEEP_S)

    def uses(self, peer: NodeId) -> bool:
        """Return whether a reservation, at ``peer`` or of it here, needs the connection."""
        return peer in self._holdings or self._context.serving.serves(peer)

    def _keep(self, now: float) -> None:
        """Keep reservations at two relays, and have the own record name those in use."""
        if not self._context.settings.use_relays:
            return
        self._timer.set(now + KEEP_S)
        # another may take its place; it is asked again when it answers. A process that comes late finds all silent
        silent = [r for r, h in self._holdings.items() if h.granted and not _works(self._context, r)]
        silent += [r for r, h in self._holdings.items() if not h.granted and now - h.asked >= ANSWER_S]
        for relay in silent if self._context.late_by < LATE_S else []:
            self._lose(relay, now)
        homes = () if self._context.settings.relay else self._homes(now)  # a relay's record names no other
        if homes != self.homes:
            self.homes = homes
            self._context.own.changed(now)
        elif _settled(self._context, self._holdings, self._retry, now):
            self._timer.set(now + SETTLED_S)

    def _homes(self, now: float) -> tuple[NodeId, ...]:
        """Ask for reservations, and return the relays for the own record: seeds, those in use, then the nearest."""
        known = self.known()
        self._hold_some(known, now)
        late = self._context.late_by >= LATE_S
        usable = {
            r: _rtt(self._context.peers.sessions[r])
            for r, h in self._holdings.items()
            if h.granted
            and (_works(self._context, r) or (late and r in self.homes and r in self._context.peers.sessions))
        }
        kept = [r for r in self.homes if r in usable]
        nearest = sorted((r for r in usable if r not in kept and r in known), key=lambda r: usable[r])
        hints = self._context.records.hints
        return tuple(sorted((*kept, *nearest), key=lambda r: r not in hints)[:HOME_RELAYS])

    def _hold_some(self, known: list[NodeId], now: float) -> None:
        """Ask relays while there are places. Configured seeds, which come first, have as many more of their own.

        Any member may say that it relays: what came while a seed was away keeps it from no place.
        """
        hints = self._context.records.hints
        for relay in known:
            own = [r for r in self._holdings if r not in self._named]
            is_full = len(own) > HOME_RELAYS
            if is_full and (relay not in hints or sum(r in hints for r in own) > HOME_RELAYS):
                break
            if (relay not in self._context.peers.sessions and not is_full) or _works(self._context, relay):
                self.hold(relay, now)

    def hold(self, relay: NodeId, now: float, named_by: Groups | None = None) -> None:
        """Get a reservation at this relay: for this node itself, or as the record of a peer names it.

        Not when there is one, or this one was lost or refused a moment ago. When ``MAX_RELAYS_NAMED`` are held that
        records name, the network with most of those that name them gives the newest of its own up.
        """
        if relay in self._holdings:
            if named_by is None:
                self._named.discard(relay)
            return
        if relay == self._context.identity.id or self._retry.get(relay, 0.0) > now:
            return
        gone = self._named.add(relay, *named_by) if named_by is not None else None
        if gone == relay:
            return
        if gone is not None:
            self._lose(gone, now)
        self._holdings[relay] = self._by_text[str(relay)] = holding = Holding(relay)

        def answer(result: Connection | MeshError) -> None:
            then = self._context.clock.monotonic()
            if isinstance(result, MeshError):
                self._not_reached(relay, then)
            elif self._holdings.get(relay) is holding:
                holding.asked = then
                result.send_frame(Control.RELAY_ASK)

        self._context.dials.connect(relay, now, answer)

    def _not_reached(self, relay: NodeId, now: float) -> None:
        """Ask a relay that could not be reached ever more rarely, unless no other node is heard either."""
        self._lose(relay, now)
        sessions = self._context.peers.sessions.values()
        if any(s.connection is not None and s.paths.seeking.silent_since is None for s in sessions):
            wait = self._unreached.get(relay, RELAY_RETRY_S)
            self._unreached.put(relay, min(2 * wait, MAX_RETRY_S))
            self._retry[relay] = now + wait

    def _lose(self, relay: NodeId, now: float) -> None:
        holding = self._holdings.pop(relay, None)
        if holding is None:
            return
        self._named.discard(relay)
        self._by_text.pop(str(relay), None)
        self._by_reservation.pop(holding.reservation, None)
        self._retry[relay] = now + RELAY_RETRY_S
        for session in self._context.peers.sessions.values():
            session.paths.book.drop(ViaRelay(str(relay)))
        self._wake(now)

    def offer(self, session: Session, now: float) -> None:
        """Give a session's paths the relays and tunnels that its peer's record names.

        A relay at which this node has no reservation is asked for one, and becomes a candidate when it grants it.
        """
        record = self._context.records.cached(session.peer)
        if record is None or not self._context.settings.use_relays:
            return
        if TUNNEL in record.capabilities:
            self._offer_tunnels(session, record, now)
        for relay in record.relays:
            holding = self._holdings.get(relay)
            if holding is not None and holding.granted:
                session.paths.add_candidates([(ViaRelay(str(relay)), "relay")], now)
            elif relay not in (self._context.identity.id, session.peer):
                self.hold(relay, now, _groups_of(self._context, session))

    def _offer_tunnels(self, session: Session, record: EndpointRecord, now: float) -> None:
        hosts = [e.addr for e in record.endpoints if e.kind in (EndpointKind.HOST, EndpointKind.MAPPED)][:2]
        hosts = [addr for addr in hosts if self._context.peers.here.believes(addr)]
        tunnels = [ViaTunnel(str(record.id), addr.host, addr.port) for addr in hosts if "%" not in addr.host]
        session.paths.add_candidates([(path, "record") for path in tunnels], now)

    # ---- connections come, speak and go

    def on_newer_record(self, session: Session, record: EndpointRecord, now: float) -> None:
        """Offer the relays of a newer record."""
        self.offer(session, now)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Forget a reservation with its connection; look at the relays when there is a new connection.

        A relay whose connection is over is asked again after ``KEEP_S``.
        """
        if up:
            if self._unreached.pop(connection.peer, None) is not None:
                self._retry.pop(connection.peer, None)
            self._wake(now)
            return
        peer = connection.peer
        if peer in self._holdings:
            self._lose(peer, now)
            self._retry[peer] = now + KEEP_S

    def moved(self, now: float) -> None:
        """Ask relays soon that could not be reached: from this node's new address they may be."""
        for relay in self._unreached:
            self._retry[relay] = min(self._retry.get(relay, now), now + KEEP_S)
        self._unreached.clear()
        self._wake(now)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Handle a control frame of a relay: a grant, a refusal or an introduction.

        Counted when malformed.
        """
        try:
            if fields[0] == Control.RELAY_GRANT:
                self._on_grant(connection.peer, fields, now)
            elif fields[0] == Control.RELAY_REFUSE:
                self._lose(connection.peer, now)
            else:
                self._on_introduced(connection.peer, fields, now)
        except (ValueError, TypeError, InvalidId):
            self._context.metrics.count(BAD_CONTROL)

    def _on_grant(self, relay: NodeId, fields: list[object], now: float) -> None:
        _, reservation, key = fields
        holding = self._holdings.get(relay)
        if holding is None or not isinstance(reservation, bytes) or not isinstance(key, bytes):
            raise ValueError("not asked for, or malformed")
        if len(reservation) != RESERVATION_LENGTH or len(key) != KEY_LENGTH:
            raise ValueError("wrong lengths")
        if self._by_reservation.get(reservation, holding) is not holding:
            raise ValueError("the reservation is another relay's")
        renewed = holding.granted
        self._by_reservation.pop(holding.reservation, None)  # one for each relay, however often it grants
        holding.reservation, holding.key = reservation, key
        self._by_reservation[reservation] = holding
        if renewed:
            return  # nothing follows from it: what a relay repeats costs this node no look at all its peers
        self._context.metrics.count(HELD)
        for session in list(self._context.peers.sessions.values()):
            record = self._context.records.cached(session.peer)
            if record is not None and relay in record.relays:
                session.paths.add_candidates([(ViaRelay(str(relay)), "relay")], now)
                self._context.dials.begin(session, now)
                self._context.probes.settle(session, now)
        self._wake(now)

    # ---- introductions

    def ask_introduction(self, session: Session) -> None:
        """Ask the relay in use to tell both ends as which addresses it sees them.

        Nothing happens when the active path is not a relayed one.
        """
        active = session.paths.active
        if not isinstance(active, ViaRelay) or session.connection is None:
            return
        holding = self._by_text.get(active.relay)
        relay = self._context.peers.sessions.get(holding.relay) if holding is not None else None
        if relay is not None and relay.connection is not None:
            relay.connection.send_frame(Control.INTRODUCE, bytes(session.peer))

    def _on_introduced(self, relay: NodeId, fields: list[object], now: float) -> None:
        peer, addr, delay_ms = _parse_introduced(fields)
        session = self._context.peers.sessions.get(peer)
        holding = self._holdings.get(relay)
        if session is None or (session.connection is None and session.dial is None):
            raise ValueError("not asked for: no connection with that peer")
        if holding is None or not holding.granted:
            raise ValueError("not asked for: no reservation at that relay")
        last = session.introduction
        if last is not None and now - last.at < INTRODUCED_AGAIN_S:  # else a relay could have this node flood others
            self._context.metrics.count(TOO_OFTEN)
            return
        self._context.metrics.count(INTRODUCTIONS)
        begin = now + delay_ms / 1000
        session.paths.introduced(addr, begin, now)
        session.introduction = Introduction(addr, now)
        tell(self._context.hooks.introduced, self._context.timers.on_error, session, begin, now)
        self._context.probes.settle(session, now)

    # ---- frames

    def wrap(self, peer: NodeId, path: ViaRelay, datagrams: list[bytes]) -> tuple[Hop, list[bytes]] | None:
        """Return where frames for ``peer`` go, and the frames, one for each datagram.

        None, counted, without a reservation or a direct path to the relay. Each frame adds ``FRAME_OVERHEAD`` bytes.
        """
        holding = self._by_text.get(path.relay)
        session = self._context.peers.sessions.get(holding.relay) if holding is not None and holding.granted else None
        active = session.paths.active if session is not None else None
        if holding is None or active is None or isinstance(active, ViaRelay):
            self._context.metrics.count(NO_RELAY, len(datagrams))
            return None
        to = label(peer)
        return active, [make_frame(holding.key, UP, holding.reservation, to, inner) for inner in datagrams]

    def on_relayed(self, data: bytes, source: Path, now: float) -> None:
        """Take a relay frame from ``source``: forward it when this node is its relay, open it when it is for this node.

        One that is not proven by the reservation's key is dropped and counted, and so is a frame in a frame.
        """
        frame = parse_frame(data)
        if frame is None:
            self._context.junk.note(source, now)
            self._context.metrics.count(BAD_FRAME)
            return
        if self._context.serving.carry(frame, now):
            return
        holding = self._by_reservation.get(frame.reservation)
        nested = frame.inner[0] == data[0]
        if holding is None or nested or not proven(frame, holding.key, DOWN):
            self._context.junk.note(source, now)
            self._context.metrics.count(BAD_FRAME)
        else:
            self._context.deliver(frame.inner, ViaRelay(str(holding.relay)), now)

    def on_switched(self, session: Session, switched: Switched, now: float) -> None:
        """Ask a relay for a sign of life when a path through it was left for silence."""
        old = switched.old
        if not switched.failed:
            return
        holding = self._by_text.get(old.relay) if isinstance(old, ViaRelay) else None
        relay = self._context.peers.connection(holding.relay) if holding is not None else None
        if relay is not None:
            self._context.probes.ping(relay, 1.0, now, lambda _: None)

    def status(self) -> dict[str, object]:
        """Return the relays for status pages; plain JSON."""
        found: dict[str, object] = {
            "held": [
                {"relay": str(h.relay), "granted": h.granted, "home": h.relay in self.homes}
                for h in self._holdings.values()
            ],
            "overhead_bytes": FRAME_OVERHEAD,
        }
        if self._context.settings.relay:
            found["clients"] = self._context.serving.clients()
        return found


def _rtt(session: Session) -> float:
    rtt = session.connection.engine.rtt() if session.connection is not None else None
    return rtt if rtt is not None else 10.0


def _works(context: Context, relay: NodeId) -> bool:
    session = context.peers.sessions.get(relay)
    if session is None or session.paths.seeking.connectivity is Connectivity.SUSPENDED:
        return False
    active = session.paths.active
    return active is not None and not isinstance(active, ViaRelay)  # no relay through a relay


def _groups_of(context: Context, session: Session) -> Groups:
    """Return where a peer is whose record names relays: its path, or that it has none yet."""
    if session.paths.active is not None:
        return path_shares(session.paths.active)
    use = context.use
    return DIALLED if use is None or use.is_used(session.peer) else UNASKED


def _parse_introduced(fields: list[object]) -> tuple[NodeId, Addr, int]:
    _, raw, packed, delay_ms = fields
    if not isinstance(raw, bytes) or not isinstance(packed, bytes) or type(delay_ms) is not int:
        raise ValueError("malformed")
    if not 0 <= delay_ms <= 1000:
        raise ValueError("no delay of a relay")
    return NodeId(raw), unpack_dialable(packed), delay_ms


def _settled(context: Context, holdings: Mapping[NodeId, Holding], retry: Mapping[NodeId, float], now: float) -> bool:
    """Return whether nothing is asked of relays or soon to be, and none in use is silent."""
    sessions = context.peers.sessions
    return context.settings.relay or (
        all(
            held.granted and relay in sessions and sessions[relay].paths.seeking.silent_since is None
            for relay, held in holdings.items()
        )
        and not any(now < at <= now + SETTLED_S for at in retry.values())
    )
