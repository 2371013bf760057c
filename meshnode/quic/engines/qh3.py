"""qh3's QuicConnection behind the seam: the fast engine, installed as ``meshnode[fast]``.

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
- **Unacknowledged bytes are not told by stream**, so ``queued_bytes`` takes them from the whole connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qh3.quic import events as quic_events
from qh3.quic.connection import QuicConnection

from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.engines.common import (
    MICROSECOND,
    NO_EVENTS,
    check_attributes,
    check_stream_limit,
    protocol_violation,
)
from meshnode.quic.engines.qh3_connection import HOLD, OVER, VIRTUAL, Qh3Connection, configuration
from meshnode.quic.packets import LONG
from meshnode.quic.seam import EngineEvent, HandshakeDone, TokenFor

SHOWN_IN_FLIGHT = 1 << 18  # of a stream's queue; less than the low-water mark, so a large window stays usable
NUDGE_STEPS = 8  # timers that may stand before the probe timer: three of ACKs, one of pacing, and some to spare
RENUDGE_S = 0.05  # between probes while nothing is acknowledged, until a round trip is known
RENUDGES = 4
ED25519_KEY = bytes.fromhex("302a300506032b6570032100")  # a SubjectPublicKeyInfo up to its 32 bytes (RFC 8410)


class Qh3Engine:
    """One connection; see ``meshnode.quic.seam.Engine`` for the contract of each method."""

    def __init__(self, quic: Qh3Connection, odcid: bytes) -> None:
        self.odcid = odcid
        self.host_cid: bytes = quic.host_cid
        self._quic = quic
        self._core = quic._core
        self._abandoned = False
        self._end_reported = False
        self._has_written = False
        self._written: dict[int, int] = {}
        self._renudge_at: float | None = None
        self._renudges = 0

    @property
    def peer_certificate_key(self) -> bytes | None:
        """The key that CertificateVerify was checked with (qh3 checks it whatever the verify mode)."""
        certificate = self._quic.get_peercert()
        key = bytes(certificate.public_key()) if certificate is not None else b""
        return key.removeprefix(ED25519_KEY) if key.startswith(ED25519_KEY) else None

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 section 4.1.2."""
        return bool(self._quic._handshake_confirmed)

    @property
    def pto_count(self) -> int:
        """Consecutive probe timeouts."""
        return 0 if self._abandoned else int(self._core.pto_count)

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram.

        The core tells new packets from old ones, but not their order: a late one counts as the newest too.
        """
        quic = self._quic
        if self._abandoned or not data:
            return False
        try:
            if quic._handshake_complete and not data[0] & LONG:
                packets: int = self._core.receive_datagram(data, VIRTUAL, now)[2]
                quic._drain_core()
                return packets > 0
            quic.feed(data, now)
        except BaseException as error:
            self._fail(error)
        return False

    def _fail(self, error: BaseException) -> None:
        """Whatever a peer's bytes raise, a panic of the core included, ends this connection and nothing else."""
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise error
        self._quic.end(protocol_violation(error))
        self.abandon()

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams: the core's, then at most one of our own with credit.

        The core's queue is drained first, so that what the application has consumed becomes credit in these datagrams.
        """
        quic = self._quic
        if self._abandoned:
            return []
        try:
            quic._drain_core()
            if self._has_written:  # data is about to leave: let the acknowledgement ride with it instead of 1 ms later
                self._has_written = False
                timer = self._core.get_timer()
                if timer is not None and timer[0] == "ack_application":
                    self._core.handle_timer(max(now, timer[1] + MICROSECOND))
            quic.poll(now)
            grants = quic.windows.take_grants(now, self._core.smoothed_rtt)
            if grants and self._core.state not in OVER:
                quic.grant(grants, now)
        except BaseException as error:
            self._fail(error)
            return []
        datagrams, quic.outbox = quic.outbox, []
        return datagrams

    def next_timer(self) -> float | None:
        """The core's one timer, a microsecond late, because firing exactly on it can spin; or a pending nudge."""
        if self._abandoned:
            return None
        timer = self._core.get_timer()
        at = None if timer is None else timer[1] + MICROSECOND
        for other in (self._renudge_at, self._quic.windows.next_resend()):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def on_timer(self, now: float) -> None:
        """Let loss detection, pacing, closing and idle timers fire."""
        quic = self._quic
        if self._abandoned:
            return
        try:
            self._core.handle_timer(now)
            quic._drain_core()
            if self._renudge_at is not None and now >= self._renudge_at:
                self._renudge(now)
        except BaseException as error:
            self._fail(error)

    def events(self) -> Sequence[EngineEvent]:
        """Hand over what was drained."""
        quic = self._quic
        queued = quic._events
        if not queued and (self._end_reported or quic.ended is None):
            return NO_EVENTS
        found: list[EngineEvent] = []
        while queued:
            event: Any = queued.popleft()
            if isinstance(event, quic_events.HandshakeCompleted):
                found.append(HandshakeDone())
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

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        core = self._core
        if self._abandoned or not core.can_send_stream(stream_id):
            return
        try:
            core.send_stream(stream_id, data, fin)
        except (RuntimeError, ValueError):  # ended in our direction
            return
        self._has_written = True
        self._written[stream_id] = self._written.get(stream_id, 0) + len(data)
        if len(self._written) > 1024:
            self._written = {key: size for key, size in self._written.items() if core.can_send_stream(key)}

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction; the application has let go of the stream."""
        self._quic.windows.forget(stream_id)
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
        """Written and unsent, and at most ``SHOWN_IN_FLIGHT`` of what the connection has in flight."""
        core = self._core
        written = self._written.get(stream_id, 0)
        if self._abandoned or not written:
            return 0
        unsent = int(core.get_send_buffer_size(stream_id))
        flying = min(int(core.bytes_in_flight), written - unsent, SHOWN_IN_FLIGHT)
        if not unsent and not flying:
            del self._written[stream_id]
        return unsent + max(0, flying)

    def consumed(self, stream_id: int, count: int) -> bool:
        """Grant as much again, in the next ``transmit``, where a core that was left alone is drained too."""
        windows = self._quic.windows
        held = windows.unread >= HOLD
        return windows.consume(stream_id, count) or (held and windows.unread < HOLD)

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
        self._renudges = 0
        self._quic.windows.resend()
        try:
            self._renudge(now)
        except BaseException as error:
            self._fail(error)

    def _renudge(self, now: float) -> None:
        core = self._core
        self._renudge_at = None
        if self._renudges and not core.pto_count:
            return  # something was acknowledged: the core's own timers are right again
        probes = core.pto_total
        for _ in range(NUDGE_STEPS):
            timer = core.get_timer()
            if timer is None or timer[0] in ("idle", "close"):
                self.ping()  # nothing is in flight, or its probe is further away than the connection's end
                return
            core.handle_timer(max(now, timer[1] + MICROSECOND))
            if core.pto_total > probes:
                break
            if timer[0].startswith("ack"):
                self._quic.poll(now)  # or it would stand before the probe for ever; but polling sets the pacer's again
        if self._renudges < RENUDGES:
            self._renudge_at = now + (1.5 * (core.smoothed_rtt or RENUDGE_S) + 0.01) * 2**self._renudges
            self._renudges += 1

    def set_datagram_size(self, size: int) -> None:
        """Nothing: the core keeps to 1,200 bytes, which every path carries."""

    def ping(self) -> None:
        """Ask for an acknowledgement."""
        if not self._abandoned and self._quic._handshake_complete and self._core.state not in OVER:
            self._core.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE with an application code; a core that panics on it ends the connection silently."""
        if not self._abandoned:
            self._end_reported = True
            try:
                self._core.close(code, None, reason.encode())
            except BaseException as error:
                self._fail(error)

    def abandon(self) -> None:
        """Stop without a byte."""
        self._abandoned = True
        self._quic.outbox.clear()


class Qh3Engines:
    """Factory of Qh3Engine objects."""

    name = "qh3"

    def dial(self, identity: Identity, peer: NodeId, token_for: TokenFor, idle_timeout: float, now: float) -> Qh3Engine:
        """Begin a connection; the caller compares the proven key with ``peer``."""
        quic = Qh3Connection(configuration=configuration(None, idle_timeout))
        odcid: bytes = quic.original_destination_connection_id
        quic.connect(VIRTUAL, now)
        quic._core.set_initial_token(token_for(odcid))
        return Qh3Engine(quic, odcid)

    def accept(self, identity: Identity, odcid: bytes, idle_timeout: float, now: float) -> Qh3Engine:
        """Make the listener's end for the Initial with this original destination connection id."""
        quic = Qh3Connection(
            configuration=configuration(identity, idle_timeout),
            original_destination_connection_id=odcid,
        )
        quic.listen(now)
        return Qh3Engine(quic, odcid)


PRIVATE = {
    "": (
        "_configuration _core _create_core _create_tls _drain_core _drain_tls _events _handshake_complete "
        "_handshake_confirmed _learn_remote_source_cid _tls _version host_cid"
    ),
    "_core": (
        "bytes_in_flight can_send_stream close get_send_buffer_size get_timer handle_timer handshake_confirmed "
        "next_event open_stream poll_transmit pto_count pto_total receive_datagram reset_stream "
        "restore_send_packet_number send_ping send_stream "
        "set_initial_token smoothed_rtt state stop_sending stream_limits version"
    ),
    "_tls": "receive_crypto remote_transport_parameters",
    "_tls.tls": "_supported_groups update_traffic_key_cb",
}


def _check() -> None:
    """Fail at start-up when this qh3 is not the one that the engine was written against."""
    quic = QuicConnection(configuration=configuration(None, 1.0))
    quic.connect(VIRTUAL, 0.0)
    check_attributes("qh3", quic, PRIVATE)


_check()
FACTORY = Qh3Engines()
