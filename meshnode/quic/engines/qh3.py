"""qh3's QuicConnection behind the seam: the fast engine, installed as ``meshnode[fast]``.

qh3 is a fork of aioquic whose packets are built and parsed in Rust. Every private attribute of it that we
touch is touched in this file, and its presence is checked at import (``_check``); the version is pinned.
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

import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from qh3 import tls
from qh3._hazmat import pull_quic_header
from qh3.quic import events as quic_events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicErrorCode, QuicProtocolVersion
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsBridgeError

from meshnode.base.limits import BASE_MTU
from meshnode.errors import StreamLimitError
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.engines.certificate import certificate_of
from meshnode.quic.engines.credit import CreditSealer, StreamWindows
from meshnode.quic.packets import CID_LENGTH, FIXED, LONG
from meshnode.quic.seam import (
    ALPN,
    IDLE,
    LOCAL,
    CidIssued,
    CidRetired,
    EngineEvent,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
)

VIRTUAL = ("2001:db8::1", 1)  # the core parses it; RFC 3849 says that nobody has it
STREAM_WINDOW = 1 << 21
CONNECTION_WINDOW = 1 << 22
WIDE_OPEN = 1 << 60  # a core's window that never moves: it would at half of this
HOLD = 3 * STREAM_WINDOW  # bytes a peer may make us keep unread; with the core's own window 10 MB a connection
APPLICATION_SPACE = 2
SHOWN_IN_FLIGHT = 1 << 18  # of a stream's queue; less than the low-water mark, so a large window stays usable
NUDGE_STEPS = 8  # timers that may stand before the probe timer: three of ACKs, one of pacing, and some to spare
RENUDGE_S = 0.05  # between probes while nothing is acknowledged, until a round trip is known
RENUDGES = 4
MICROSECOND = 1e-6
ED25519_KEY = bytes.fromhex("302a300506032b6570032100")  # a SubjectPublicKeyInfo up to its 32 bytes (RFC 8410)
MAINLINE = (b"1:", b"2:")  # behind the byte "d" these would look like a Mainline DHT message on a shared socket
OVER = ("closing", "draining", "terminated")
NO_EVENTS: tuple[EngineEvent, ...] = ()


class _Quic(QuicConnection):
    """QuicConnection with key-only TLS, and an event queue that is left alone while the application lags."""

    _core: Any  # there from the start, for Retry and Version Negotiation, which replace it, never get here
    _tls: Any
    _events: Any  # a deque of our events, and among them TLS's own

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.windows = StreamWindows(STREAM_WINDOW)
        self.sealer: CreditSealer | None = None
        self.ended: Terminated | None = None
        if self.host_cid[:2] in MAINLINE:
            self.host_cid = b"\0" + self.host_cid[1:]

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        told = self._configuration
        self._configuration = replace(told, max_stream_data=WIDE_OPEN)
        super()._create_core(remote_addr, initial_dcid, now)
        self._configuration = told

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        bridge = super()._create_tls(remote_source_cid)
        # Without the post-quantum share the ClientHello fits one datagram: the one that carries the knock.
        bridge.tls._supported_groups = [tls.Group.X25519]
        install = bridge.tls.update_traffic_key_cb

        def on_secret(direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes) -> None:
            if direction is tls.Direction.ENCRYPT and epoch is tls.Epoch.ONE_RTT:
                self.sealer = CreditSealer(secret)
            install(direction, epoch, suite, secret)

        bridge.tls.update_traffic_key_cb = on_secret
        return bridge

    def _drain_tls(self) -> None:
        parameters = self._tls.remote_transport_parameters
        if parameters is not None:
            parameters.active_connection_id_limit = 2  # one spare id is enough for who never sees an address change
        super()._drain_tls()

    @property
    def held(self) -> bool:
        """True while what waits for the application keeps us from taking more."""
        return self.windows.unread >= HOLD and self._core.state not in OVER

    def listen(self, now: float) -> None:
        """Make ready for the client's first packet, as ``connect`` does for the server's."""
        self._version = QuicProtocolVersion.VERSION_1
        self._create_core(VIRTUAL, self.original_destination_connection_id, now)
        self._create_tls(None)

    def feed(self, data: bytes, now: float) -> int:
        """Feed one datagram, packet by packet, for TLS must see an Initial before the core can read what follows.

        Returns how many packets were authentic and new. Unlike the stock method it counts what stands behind
        the last packet: aioquic pads its Initials there, and three times their bare size is too little to answer.
        """
        size, offset, packets = len(data), 0, 0
        while offset < size:
            try:
                end: int = pull_quic_header(data, offset, CID_LENGTH)[9]
            except ValueError:
                break
            if end <= offset or (end < size and not data[end] & FIXED):
                end = size
            packet = data[offset:end]
            new: int = self._core.receive_datagram(packet, VIRTUAL, now, size)[2]
            if new:
                self._learn_remote_source_cid(packet)
                packets += new
            self._drain_core()
            offset = end
        return packets

    def _drain_core(self) -> None:
        core = self._core
        while not self.held:
            native = core.next_event()
            if native is None:
                return
            kind = native[0]
            if kind == "stream_data":
                _, stream_id, data, fin = native
                if not self.windows.deliver(stream_id, len(data), fin):
                    core.close(QuicErrorCode.FLOW_CONTROL_ERROR, None, b"more than was granted")
                    self._end(Terminated(LOCAL, "the peer sent more than it was granted", False))
                    return
                self._events.append(StreamData(stream_id, data, fin))
            elif kind == "crypto_data":
                self._take_crypto(native)
            elif kind == "handshake_done":
                self._handshake_confirmed = True
                core.handshake_confirmed()
            elif kind == "stream_reset":
                self.windows.forget(native[1])
                self._events.append(StreamReset(native[1], native[2]))
            elif kind == "stop_sending":
                self._events.append(StopSending(native[1], native[2]))
            elif kind == "peer_blocked":
                if native[1] is not None:
                    self.windows.on_blocked(native[1], native[2])
            elif kind == "connection_id_issued":
                if native[1][:2] not in MAINLINE:  # chosen in the core: the one in 32,768 is simply never routed
                    self._events.append(CidIssued(native[1]))
            elif kind == "connection_id_retired":
                self._events.append(CidRetired(native[1]))
            elif kind == "peer_closed":
                _, application, code, _, reason = native
                self._end(Terminated(code if application else LOCAL, reason.decode("utf8", "replace"), True))
            elif kind == "protocol_error":
                self._end(Terminated(LOCAL, f"the peer broke the protocol: {native[3]}", False))
            elif kind == "connection_terminated":
                reason = native[3].decode("utf8", "replace")
                if reason == "Idle timeout":
                    self._end(Terminated(IDLE, "nothing was heard for too long", False))
                else:
                    self._end(Terminated(LOCAL, reason, False))

    def _take_crypto(self, native: tuple[Any, ...]) -> None:
        _, epoch, offset, data = native
        try:
            self._tls.receive_crypto(tls.Epoch(epoch), data, offset, version=self._core.version)
            self._drain_tls()
        except QuicTlsBridgeError as error:
            self._core.close(error.error_code, int(error.frame_type), error.reason_phrase.encode())
            self._end(Terminated(LOCAL, error.reason_phrase, False))

    def _end(self, ended: Terminated) -> None:
        if self.ended is None:
            self.ended = ended


class Qh3Engine:
    """One connection; see ``meshnode.quic.engine.Engine`` for the contract of each method."""

    def __init__(self, quic: _Quic, odcid: bytes) -> None:
        self.odcid = odcid
        self.host_cid: bytes = quic.host_cid
        self._quic = quic
        self._core = quic._core
        self._gone = False
        self._told = False
        self._wrote = False
        self._written: dict[int, int] = {}
        self._outbox: list[bytes] = []
        self._number = 0  # of the next 1-RTT packet
        self._last = b""  # the core's newest 1-RTT packet, always a datagram of its own
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
        return 0 if self._gone else int(self._core.pto_count)

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram; the core tells new packets from old ones, but not their order."""
        quic = self._quic
        if self._gone or not data:
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
        self._quic._end(Terminated(LOCAL, f"the peer broke the protocol: {error!r}"[:200], False))
        self.abandon()

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams."""
        quic = self._quic
        if self._gone:
            return []
        try:
            quic._drain_core()  # what the application has consumed becomes credit in these very datagrams
            if self._wrote:  # data is about to leave: let the acknowledgement ride with it instead of 1 ms later
                self._wrote = False
                timer = self._core.get_timer()
                if timer is not None and timer[0] == "ack_application":
                    self._core.handle_timer(max(now, timer[1] + MICROSECOND))
            self._poll(now)
            grants = quic.windows.take_grants(now, self._core.smoothed_rtt)
            if grants and self._core.state not in OVER:
                self._grant(grants, now)
        except BaseException as error:
            self._fail(error)
            return []
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def _poll(self, now: float) -> None:
        poll = self._core.poll_transmit
        try:
            while (sent := poll(now)) is not None:
                data = sent[0]
                if not data[0] & LONG:
                    self._last = data
                    self._number += 1
                self._outbox.append(data)
        except RuntimeError:
            if self._quic._handshake_complete:
                raise
            # What an unproven client may be sent is less than the next packet: wait for more from him.

    def _grant(self, grants: list[tuple[int, int]], now: float) -> None:
        if not self._last:
            self._core.send_ping(0)
            self._poll(now)
        sealer, number = self._quic.sealer, self._number
        if sealer is None or not sealer.is_number(self._last, number - 1):
            # A number used twice would give the key away. No peer of ours updates keys, so this does not happen.
            raise RuntimeError("the core's packet numbers are not known")
        self._outbox.append(sealer.seal(self._last[1 : 1 + CID_LENGTH], number, grants))
        self._number = number + 1
        self._core.restore_send_packet_number(APPLICATION_SPACE, self._number)

    def next_timer(self) -> float | None:
        """The core's one timer, a microsecond late, because firing exactly on it can spin; or a pending nudge."""
        if self._gone:
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
        if self._gone:
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
        if not queued and (self._told or quic.ended is None):
            return NO_EVENTS
        found: list[EngineEvent] = []
        while queued:
            event: Any = queued.popleft()
            if isinstance(event, quic_events.HandshakeCompleted):
                found.append(HandshakeDone())
            elif not isinstance(event, quic_events.QuicEvent):
                found.append(event)
        if not self._told and quic.ended is not None:
            self._told = True
            found.append(quic.ended)
        return found

    def open_stream(self) -> int:
        """Reserve the next bidirectional stream id; asked only for what the peer grants, for the core counts on."""
        core = self._core
        granted, _, opened, _ = core.stream_limits
        if opened >= granted:
            raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")
        return int(core.open_stream(False))

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        core = self._core
        if self._gone or not core.can_send_stream(stream_id):
            return
        try:
            core.send_stream(stream_id, data, fin)
        except (RuntimeError, ValueError):  # ended in our direction
            return
        self._wrote = True
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
        if not self._gone:
            try:
                getattr(self._core, command)(stream_id, code)
            except (RuntimeError, ValueError):
                pass  # over already: there is nothing to abort

    def queued_bytes(self, stream_id: int) -> int:
        """Written and unsent, and at most ``SHOWN_IN_FLIGHT`` of what the connection has in flight."""
        core = self._core
        written = self._written.get(stream_id, 0)
        if self._gone or not written:
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
        return 0 if self._gone else int(self._core.bytes_in_flight)

    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        found: float | None = None if self._gone else self._core.smoothed_rtt
        return found

    def nudge(self, now: float) -> None:
        """Probe with the oldest in flight at once, and again until something is acknowledged on the new path."""
        if self._gone or self._core.state in OVER:
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
                self._poll(now)  # or it would stand before the probe for ever; but polling sets the pacer's again
        if self._renudges < RENUDGES:
            self._renudge_at = now + (1.5 * (core.smoothed_rtt or RENUDGE_S) + 0.01) * 2**self._renudges
            self._renudges += 1

    def set_datagram_size(self, size: int) -> None:
        """Nothing: the core keeps to 1,200 bytes, which every path carries."""

    def ping(self) -> None:
        """Ask for an acknowledgement."""
        if not self._gone and self._quic._handshake_complete and self._core.state not in OVER:
            self._core.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE."""
        if not self._gone:
            self._told = True
            try:
                self._core.close(code, None, reason.encode())
            except BaseException as error:
                self._fail(error)

    def abandon(self) -> None:
        """Stop without a byte."""
        self._gone = True
        self._outbox.clear()


class Qh3Engines:
    """Makes Qh3Engine objects."""

    name = "qh3"

    def dial(
        self,
        identity: Identity,
        peer: NodeId,
        token_for: Callable[[bytes], bytes],
        idle_timeout: float,
        now: float,
    ) -> Qh3Engine:
        """Begin a connection to whoever holds ``peer``'s key; the key itself is checked by the caller."""
        quic = _Quic(configuration=_configuration(None, idle_timeout))
        odcid: bytes = quic.original_destination_connection_id
        quic.connect(VIRTUAL, now)
        quic._core.set_initial_token(token_for(odcid))
        return Qh3Engine(quic, odcid)

    def accept(self, identity: Identity, odcid: bytes, idle_timeout: float, now: float) -> Qh3Engine:
        """Stand ready for the Initial with this original destination connection id."""
        quic = _Quic(
            configuration=_configuration(identity, idle_timeout),
            original_destination_connection_id=odcid,
        )
        quic.listen(now)
        return Qh3Engine(quic, odcid)


@lru_cache(maxsize=1024)
def _credentials(identity: Identity) -> tuple[Any, Any]:
    certificate, private = certificate_of(identity)
    loaded = QuicConfiguration()
    loaded.load_cert_chain(
        certificate.public_bytes(Encoding.PEM),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return loaded.certificate, loaded.private_key


def _configuration(listener: Identity | None, idle_timeout: float) -> QuicConfiguration:
    certificate, private_key = _credentials(listener) if listener is not None else (None, None)
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        certificate=certificate,
        cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
        connection_id_length=CID_LENGTH,
        idle_timeout=idle_timeout,
        is_client=listener is None,
        max_data=CONNECTION_WINDOW,
        max_datagram_frame_size=0,
        max_datagram_size=BASE_MTU,
        max_stream_data=STREAM_WINDOW,
        private_key=private_key,
        probe_datagram_size=False,
        signature_algorithms=[tls.SignatureAlgorithm.ED25519],
        supported_versions=[QuicProtocolVersion.VERSION_1],
        verify_mode=ssl.CERT_NONE,
    )


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
    """Fail at start-up, with names, when this qh3 is not the one that this file was written against."""
    quic = QuicConnection(configuration=_configuration(None, 1.0))
    quic.connect(VIRTUAL, 0.0)
    missing = []
    for place, names in PRIVATE.items():
        holder: object = quic
        for step in place.split(".") if place else ():
            holder = getattr(holder, step, None)
        missing += [f"{place}.{name}".lstrip(".") for name in names.split() if not hasattr(holder, name)]
    if missing:
        raise ImportError(f"this qh3 lacks {', '.join(missing)}; install the pinned version")


_check()
