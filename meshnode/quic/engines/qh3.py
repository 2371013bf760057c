"""qh3's QuicConnection behind the seam: the engine wherever qh3 is installed.

qh3 is a fork of aioquic whose packets are built and parsed in Rust. Every private attribute of it that we
touch is touched here or in ``qh3_connection.py``, and its presence is checked at import (``_check``); the version is
pinned.
It sees one constant virtual address, so neither end's move ever reaches it. Where it falls short:

- **Stream credit** follows the arrival of bytes: the core grants more when an event leaves its one queue,
  whether or not the application reads. So the core's stream windows are opened wide, where they never move, the
  peer is told our own, and we grant the rest ourselves, in packets of our own (``credit.py``). The core's
  connection window stays, and once ``HOLD`` bytes wait for the application its queue is left alone.
- **Datagrams of 1,200 bytes.** The size can be lowered but never raised by hand, and the core's own path MTU
  discovery knows nothing of our paths: a switch to a smaller one would swallow all that it sends.
- **No loss by decree.** A nudge makes the core's probe timer fire at once, and again until something is
  acknowledged; what the probe's acknowledgement then proves lost counts as one congestion event.
- **DATAGRAM frames heed no congestion window**, and one that no packet has room for is a panic. So they wait here.
- **Unacknowledged bytes are not told by stream**, so ``queued_bytes`` takes them from the whole connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

from meshnode.quic.engines.deferred import light_dataclasses, unexecuted

with unexecuted(), light_dataclasses("qh3"):  # before anything else imports it
    from qh3._hazmat import QuicConnectionCore, X25519KeyExchange
    from qh3.quic import events as quic_events
    from qh3.quic.connection import QuicConnection
    from qh3.quic.tls_bridge import QuicTlsBridge

from meshnode.base.limits import BASE_MTU
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.buffers import Written
from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.engines.backlog import PACKET, SINGLY
from meshnode.quic.engines.common import (
    MICROSECOND,
    NO_EVENTS,
    PeerFault,
    check_attributes,
    check_stream_limit,
    engine_failure,
    protocol_violation,
)
from meshnode.quic.engines.key_exchange import GROUPS, ON
from meshnode.quic.engines.qh3_check import check_core
from meshnode.quic.engines.qh3_connection import OVER, VIRTUAL, Qh3Connection, coalesced, configuration
from meshnode.quic.engines.qh3_tls import check as check_tls
from meshnode.quic.packets import LONG
from meshnode.quic.seam import EngineEvent, TokenFor

SHOWN_IN_FLIGHT = 1 << 18  # of a stream's queue; less than the low-water mark, so a large window stays usable
BESIDE = 1 << 16  # bytes in flight beside a stream's own: a transfer, and no moment without any
NUDGE_STEPS = 8  # timers that may stand before the probe timer: three of ACKs, one of pacing, and some to spare
RENUDGE_S = 0.05  # between probes while nothing is acknowledged, until a round trip is known
RENUDGES = 4


class Nudge:
    """Probes on a path that has just been taken: one at once, and again until something is acknowledged there."""

    def __init__(self, quic: Qh3Connection) -> None:
        self.due: float | None = None
        self._quic = quic
        self._core = quic._core
        self._count = 0

    def begin(self, now: float) -> None:
        """Send the first probe."""
        self._count = 0
        self.probe(now)

    def probe(self, now: float) -> None:
        """Send one more with the oldest in flight, unless the last one was answered; sets ``due``."""
        core = self._core
        self.due = None
        if self._count and not core.pto_count:
            return  # something was acknowledged: the core's own timers are right again
        if not self._quic.balance.may_probe(core.bytes_in_flight):
            self._quic.ping()
            return
        probes = core.pto_total
        for _ in range(NUDGE_STEPS):
            timer = core.get_timer()
            if timer is None or timer[0] in ("idle", "close"):
                self._quic.ping()  # nothing is in flight, or its probe is further away than the connection's end
                return
            core.handle_timer(max(now, self._quic.time, timer[1] + MICROSECOND))
            if core.pto_total > probes:
                break
            if timer[0].startswith("ack"):
                self._quic.poll(now)  # or it would stand before the probe for ever; but polling sets the pacer's again
        if self._count < RENUDGES:
            self.due = now + (1.5 * (core.smoothed_rtt or RENUDGE_S) + 0.01) * 2**self._count
            self._count += 1


class Qh3Engine:
    """One connection; see ``meshnode.quic.seam.Engine`` for the contract of each method."""

    def __init__(self, quic: Qh3Connection, odcid: bytes) -> None:
        self.odcid = odcid
        self.peer_certificate_key: bytes | None = None
        self.backlog = 0
        self.datagrams = DatagramQueue((), lambda: quic._remote_max_datagram_frame_size)
        quic.windows.datagrams = self.datagrams
        # grants as much again in the next ``transmit``, where a core that was left alone is drained too
        self.consumed: Callable[[int, int], bool] = quic.windows.consume
        quic._events = [*quic._events]  # a deque takes 600 bytes for none
        self._quic = quic
        self._core = quic._core
        self._abandoned = False
        self._end_reported = False
        self._acks_now = False
        self._flight: int | None = 0  # datagrams that the ClientHello takes; None once anything authentic has come
        self._closing = False  # closed, and the datagram that says so is not made
        self._written = Written()
        self._nudge = Nudge(quic)

    @property
    def host_cid(self) -> bytes:
        """Our first connection id.

        Changed in its first byte where a shared socket would take it for a Mainline DHT message.
        """
        return bytes(self._quic.host_cid)

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 section 4.1.2."""
        return bool(self._quic._handshake_confirmed)

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        """Feed datagrams.

        The core tells new packets from old ones, but not their order: a late one counts as the newest too.
        """
        quic = self._quic
        if self._abandoned or not datagrams:
            return False
        now = max(now, quic.time)
        try:
            first = datagrams[0]
            is_short = first and not first[0] & LONG and (len(datagrams) == 1 or _are_short(datagrams))
            if quic._handshake_complete and is_short:
                backlog = quic.windows.backlog
                if backlog.singly:
                    size, packets = quic.take_singly(datagrams, now)
                else:
                    if len(datagrams) == 1:
                        _, size, packets, *_ = self._core.receive_datagram(datagrams[0], VIRTUAL, now)
                    else:
                        _, size, packets, *_ = self._core.receive_many_datagrams(datagrams, VIRTUAL, now)
                    if packets < len(datagrams):
                        backlog.singly, size = SINGLY, packets * min(map(len, datagrams))
                quic.own.count += packets
                if size > PACKET * packets:
                    quic.own.hear(quic, datagrams, packets)
                quic.balance.received += size
                quic._drain_core()
                events = quic._events
                if not events or (len(events) == 1 and getattr(events[0], "stream_id", None) == 0):
                    self._acks_now = True  # no application has anything to say to it: at rest one wake less
                if backlog.size or size > PACKET * packets + backlog.brought:
                    backlog.add(size, packets, now)
                    self.backlog = int(backlog.size)
                else:
                    backlog.brought = 0
                return packets > 0
            for data in datagrams:
                quic.feed(data, now)
        except BaseException as error:
            self._fail(error, fed=True)
        return False

    def _fail(self, error: BaseException, *, fed: bool = False) -> None:
        """Whatever the core raises, a panic included, ends this connection and nothing else.

        What it raises while it is ``fed`` is the peer's fault, all else this node's.
        """
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise error
        by_peer = fed or isinstance(error, PeerFault)
        self._quic.end(protocol_violation(error) if by_peer else engine_failure(error))
        self.abandon()

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams: the core's, then at most one of our own with credit.

        The core's queue is drained first, so that what the application has consumed becomes credit in these datagrams.
        """
        quic = self._quic
        if self._abandoned:
            return []
        self._closing = False
        self._written.now = now
        try:
            if self._core.has_events:  # some were left while too much was unread
                quic._drain_core()
            if self._acks_now or self.datagrams.waiting:  # an ACK rides with what is written, not 1 ms later
                self._acks_now = False
                timer = self._core.get_timer()
                if timer is not None and timer[0] == "ack_application":
                    self._core.handle_timer(max(now, quic.time, timer[1] + MICROSECOND))
            if self.datagrams.waiting:
                self._send_datagrams(now)
            quic.poll(now)
            if quic.own.heard:
                quic.own.acknowledge(quic, now)
            windows = quic.windows
            if windows.pending or windows.waiting:
                quic.own.grant(quic, now)
        except BaseException as error:
            self._fail(error)
            return []
        datagrams, quic.outbox = quic.outbox, []
        if self._flight is not None:
            # So many datagrams have the ClientHello. What the core adds to its probes has none: a listener that gets it
            # first refuses.
            self._flight = self._flight or len(datagrams)
            if self._core.received_authenticated_packet:
                self._flight = None
            datagrams = datagrams[: self._flight]
        if windows.backlog.size:
            windows.backlog.sent(sum(map(len, datagrams)))
        return coalesced(datagrams) if len(datagrams) > 1 and datagrams[0][0] & LONG else datagrams

    def _send_datagrams(self, now: float) -> None:
        """Build those that the congestion window allows, which the core does not look at, and two packets more.

        Bulk has the window filled, and after a loss more than filled: without the two it starves datagrams for seconds.
        Each leaves at once, so that none meets a smaller packet.
        """
        core, waiting = self._core, self.datagrams.waiting
        assert not isinstance(waiting, tuple)
        while waiting and core.bytes_in_flight <= core.congestion_window + BASE_MTU and core.state not in OVER:
            core.send_datagram(waiting.popleft())
            self._quic.poll(now)

    def next_timer(self) -> float | None:
        """The core's one timer, a microsecond late, because firing exactly on it can spin; or a pending nudge."""
        if self._abandoned:
            return None
        timer = self._core.get_timer()
        at = None if timer is None else timer[1] + MICROSECOND
        windows = self._quic.windows
        for other in (self._nudge.due, windows.next_resend() if windows.waiting else None):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def on_timer(self, now: float) -> None:
        """Let loss detection, pacing, closing and idle timers fire.

        Not between ``close`` and its datagram: the core counts the wait after it from the last time that it was told.
        """
        quic = self._quic
        if self._abandoned or self._closing:
            return
        try:
            self._core.handle_timer(max(now, quic.time))
            quic._drain_core()
            if self._nudge.due is not None and now >= self._nudge.due:
                self._nudge.probe(now)
        except BaseException as error:
            self._fail(error)

    def events(self) -> Sequence[EngineEvent]:
        """Hand over what was drained."""
        quic = self._quic
        queued = quic._events
        if quic.ended is None or self._end_reported:
            if not queued:
                return NO_EVENTS
            if quic._tls is None:  # none of the handshake's is among them any more
                quic._events = []
                return queued
        quic._events = []
        found: list[EngineEvent] = []
        for event in queued:
            if isinstance(event, quic_events.HandshakeCompleted):
                self.peer_certificate_key, done = quic.forget_handshake()
                found.append(done)
            elif not isinstance(event, quic_events.QuicEvent):
                found.append(event)
        if not self._end_reported and quic.ended is not None:
            self._end_reported = True
            found.append(quic.ended)
        return found

    def open_stream(self) -> int:
        """Reserve the next bidirectional stream id; asked only for what the peer grants, for the core counts on."""
        core = self._core
        granted, _, opened, _ = core.stream_limits
        check_stream_limit(opened, granted)
        return int(core.open_stream(False))

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        if self._abandoned:
            return
        try:
            self._core.send_stream(stream_id, data, fin)
        except (RuntimeError, ValueError):  # ended in our direction
            return
        self._acks_now = True
        written = self._written
        written[stream_id] = written.get(stream_id, 0) + len(data)
        if len(written) > written.most:
            core = self._core
            written.drop_sent(lambda key: not (core.can_send_stream(key) or core.get_send_buffer_size(key)))

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction."""
        self._try("reset_stream", stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to end its direction."""
        self._quic.windows.forget(stream_id)
        self._try("stop_sending", stream_id, code)

    def _try(self, command: str, stream_id: int, code: int) -> None:
        if not self._abandoned:
            try:
                getattr(self._core, command)(stream_id, code)
            except (RuntimeError, ValueError):
                pass  # over already: there is nothing to abort

    def queued_bytes(self, stream_id: int) -> int:
        """Written and unsent, and at most ``SHOWN_IN_FLIGHT`` of what is in flight, until it has arrived."""
        core, written = self._core, self._written.get(stream_id, 0)
        if self._abandoned or not written:
            return 0
        unsent = int(core.get_send_buffer_size(stream_id))
        in_flight = int(core.bytes_in_flight)
        flying = min(in_flight, written - unsent, SHOWN_IN_FLIGHT)
        if not unsent and (not flying or (in_flight - written > BESIDE and _has_all(core, self._written, stream_id))):
            del self._written[stream_id]
            return 0
        return unsent + max(0, flying)

    def unread(self) -> int:
        """Bytes that were delivered in order and not consumed."""
        return self._quic.windows.unread

    def in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return 0 if self._abandoned else int(self._core.bytes_in_flight)

    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        found: float | None = None if self._abandoned else self._core.smoothed_rtt
        return found

    def nudge(self, now: float) -> None:
        """Probe with the oldest in flight at once, and again until something is acknowledged on the new path."""
        if self._abandoned or self._core.state in OVER:
            return
        self._quic.windows.resend()
        try:
            self._nudge.begin(now)
        except BaseException as error:
            self._fail(error)

    def set_datagram_size(self, size: int) -> None:
        """Keep to less than before; the core has no way back to more, and begins with what its path surely carries."""
        if not self._abandoned and size < self._core.active_path[5]:
            try:
                self._quic.lower(size)
            except BaseException as error:
                self._fail(error)

    def ping(self) -> None:
        """Ask for an acknowledgement."""
        if not self._abandoned:
            self._quic.ping()

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE with an application code; a core that panics on it ends the connection silently."""
        if not self._abandoned:
            self._end_reported = self._closing = True
            try:
                self._core.close(code, None, reason.encode())
            except BaseException as error:
                self._fail(error)

    def abandon(self) -> None:
        """Stop without a byte."""
        self._abandoned = True
        self._quic.outbox.clear()

    def release(self) -> None:
        """Cut the circles of qh3's connection: bound methods in TLS's callbacks."""
        for part in (self._quic._tls, self._quic):
            if part is not None:
                vars(part).clear()


def _has_all(core: QuicConnectionCore, written: Written, stream_id: int) -> bool:
    """Return whether the peer has all of a stream of which nothing is unsent, beside a transfer."""
    if written.has_all is None:
        from meshnode.quic.engines.arrivals import Arrivals  # few nodes carry transfers

        written.has_all = Arrivals(core).has_all
    return written.has_all(stream_id, written[stream_id], written.now)


def _are_short(datagrams: Sequence[bytes]) -> bool:
    return not [data for data in datagrams if not data or data[0] & LONG]


class Qh3Engines:
    """Factory of Qh3Engine objects; ``post_quantum`` is as in ``Config``."""

    name = "qh3"

    def __init__(self, post_quantum: str = ON) -> None:
        self._groups = GROUPS[post_quantum]

    def dial(
        self,
        identity: Identity,
        peer: NodeId,
        token_for: TokenFor,
        idle_timeout: float,
        now: float,
        size: int = BASE_MTU,
    ) -> Qh3Engine:
        """Begin a connection; the caller compares the proven key with ``peer``."""
        quic = Qh3Connection(configuration=configuration(None, idle_timeout, size, self._groups))
        odcid: bytes = quic.original_destination_connection_id
        quic.connect(VIRTUAL, now)
        quic._core.set_initial_token(token_for(odcid))
        return Qh3Engine(quic, odcid)

    def accept(
        self, identity: Identity, odcid: bytes, idle_timeout: float, now: float, size: int = BASE_MTU
    ) -> Qh3Engine:
        """Make the listener's end for the Initial with this original destination connection id."""
        quic = Qh3Connection(
            configuration=configuration(identity, idle_timeout, size, self._groups),
            original_destination_connection_id=odcid,
        )
        quic.listen(now)
        return Qh3Engine(quic, odcid)


# what is touched of the connection before it has a core, of the core, and of TLS
PRIVATE: dict[str, str] = {
    "QuicConnection": (
        "_applied_transport_parameters _configuration _core _create_core _create_tls _drain_core _drain_tls _events "
        "_handshake_complete _handshake_confirmed _learn_remote_source_cid "
        "_remote_max_datagram_frame_size _tls _version host_cid"
    ),
    "QuicConnectionCore": (
        "active_path apply_peer_transport_parameters bytes_in_flight can_send_stream close congestion_window "
        "get_send_buffer_size get_timer handle_timer handshake_confirmed has_events loss_total next_event open_stream "
        "outstanding_application_packets poll_transmit pto_count pto_total receive_datagram receive_many_datagrams "
        "reset_stream restore_send_packet_number send_datagram send_ping send_stream "
        "set_initial_token smoothed_rtt state stop_sending stream_limits version"
    ),
    "QuicTlsBridge": (
        "_on_traffic_secret(direction,epoch,cipher_suite,secret) _traffic_secrets configuration "
        "local_initial_source_connection_id original_destination_connection_id receive_crypto "
        "remote_transport_parameters serialize_transport_parameters "
        "stateless_reset_token"
    ),
    "QuicTlsBridge.tls": "_client_handle_hello _server_handle_hello _supported_groups",
}


def _check() -> None:
    """Fail at start-up when this qh3 is not the one that the engine was written against."""
    settings = configuration(None, 1.0)
    made = SimpleNamespace(
        QuicConnection=QuicConnection(configuration=settings),
        QuicConnectionCore=QuicConnectionCore,
        QuicTlsBridge=QuicTlsBridge(settings, version=1, local_initial_source_connection_id=b""),
    )
    check_attributes("qh3", made, PRIVATE)
    check_tls()
    check_core(FACTORY)


FACTORY = Qh3Engines()
_check()
X25519KeyExchange()  # the core gathers entropy, once, for 40 ms in which no Python runs: not in a loop that serves
