"""qh3's QuicConnection with key-only TLS, its event queue in the seam's terms, and packets of our own for credit.

Used by ``qh3.py`` alone, which checks at import that all private attributes touched here are present.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qh3 import tls
from qh3._hazmat import QuicConnectionCore, pull_quic_header
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicErrorCode, QuicProtocolVersion
from qh3.quic.tls_bridge import QuicTlsBridgeError

from meshnode.base.limits import BASE_MTU, MAX_HANDSHAKE
from meshnode.identity.keys import Identity
from meshnode.quic.engines.backlog import FRAME, SINGLY, Balance
from meshnode.quic.engines.certificate import certificate_of, key_of, pem, private_key_of
from meshnode.quic.engines.common import (
    MAINLINE,
    MICROSECOND,
    STREAM_WINDOW,
    STREAMS,
    UNPROVEN,
    ended_locally,
    routable_cid,
    settings,
    unproven,
)
from meshnode.quic.engines.credit import StreamWindows, max_stream_data
from meshnode.quic.engines.key_exchange import GROUPS, NAMES, ON
from meshnode.quic.engines.qh3_tls import UNIDIRECTIONAL, KeyOnlyTls
from meshnode.quic.packets import CID_LENGTH, FIXED, LONG
from meshnode.quic.seam import (
    LOCAL,
    MAX_DATAGRAM_FRAME,
    CidIssued,
    CidRetired,
    Datagram,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
)

if TYPE_CHECKING:
    from meshnode.quic.engines.late_acks import LateAcks
    from meshnode.quic.engines.packet_keys import PacketKeys

VIRTUAL = ("2001:db8::1", 1)  # the core parses it; a documentation address, which no node has (RFC 3849)
WIDE_OPEN = 1 << 60  # a core's window that never moves: it would at half of this
OVER = ("closing", "draining", "terminated")
APPLICATION_SPACE = 2
MAX_HEARD = 64  # packets that are looked at again for an ACK: 1 MB within a host, while both ends send
AHEAD_S = 0.002  # a burst, as the other engine allows
HOLD = 3 * STREAM_WINDOW  # bytes a peer may make us keep unread; with the core's own window 10 MB a connection

Native = tuple[Any, ...]  # an event of the core: its kind, then its fields


class OwnPackets:
    """Packets of our own among the core's: stream credit, and ACKs that it holds back.

    Attributes:
        number: The number of the next 1-RTT packet.
        last: The newest 1-RTT packet, always a datagram of its own.
        heard: 1-RTT packets that came while something is in flight, and may not be acknowledged yet.
        count: How many 1-RTT packets came.
    """

    __slots__ = ("_late", "_sealer", "count", "heard", "last", "number")

    def __init__(self) -> None:
        self._sealer: PacketKeys | bytes = b""  # until the first packet the secret that it is made of
        self._late: LateAcks | bytes = b""  # the same of the peer's
        self.heard: list[bytes] = []
        self.count = 0
        self.number = 0
        self.last = b""

    def begin(self, sent: bytes, received: bytes) -> None:
        """Take the secrets of 1-RTT packets."""
        self._sealer, self._late = sent, received

    def grant(self, quic: Any, now: float) -> None:
        """Add a packet with the credit that is due."""
        grants = quic.windows.take_grants(now, quic._core.smoothed_rtt)
        if grants and quic._core.state not in OVER:
            self._add(quic, max_stream_data(grants), now)

    def hear(self, quic: Any, datagrams: Sequence[bytes], new: int) -> None:
        """Keep the newest ``MAX_HEARD`` 1-RTT packets that came while something is in flight, if all are ``new``."""
        if new == len(datagrams) and quic._core.bytes_in_flight:
            self.heard += datagrams
            del self.heard[:-MAX_HEARD]

    def acknowledge(self, quic: Any, now: float) -> None:
        """Add a packet that acknowledges what was heard, when the congestion window is full and the core sends nothing.

        While the window has room, the core's own ACK has left, or will when it is due.
        """
        core = quic._core
        if core.bytes_in_flight + quic._configuration.max_datagram_size <= core.congestion_window:
            self.heard.clear()
        elif not quic.outbox and core.state not in OVER:
            self._acknowledge(quic, now)

    def _acknowledge(self, quic: Any, now: float) -> None:
        if isinstance(self._late, bytes):
            from meshnode.quic.engines.late_acks import LateAcks

            self._late = LateAcks(self._late)
        frame = self._late.frame(self.heard, self.count)
        self.heard.clear()
        if frame:
            self._add(quic, frame, now)

    def _add(self, quic: Any, frames: bytes, now: float) -> None:
        """Add a packet with these frames to the outbox of a ``Qh3Connection``, with the number after the core's last.

        Raises RuntimeError when that number is not known for sure.
        """
        if not self.last:
            quic._core.send_ping(0)
            quic.poll(now)
        if self._sealer and isinstance(self._sealer, bytes):
            from meshnode.quic.engines.packet_keys import PacketKeys

            self._sealer = PacketKeys(self._sealer)
        sealer, number = self._sealer, self.number
        if isinstance(sealer, bytes) or not sealer.is_number(self.last, number - 1):
            # A number used twice would give the key away. No node updates its keys, so this does not happen.
            raise RuntimeError("the core's packet numbers are not known")
        self.last = sealer.seal(self.last[1 : 1 + CID_LENGTH], number, frames)  # the next may come before the core's
        quic.outbox.append(self.last)
        self.number = number + 1
        quic._core.restore_send_packet_number(APPLICATION_SPACE, self.number)


class Qh3Connection(QuicConnection):
    """QuicConnection with key-only TLS, and an event queue that is left alone while the application lags."""

    _core: Any  # there from the start, for Retry and Version Negotiation, which replace it, never get here
    _tls: Any
    # the seam's events, and until the handshake is over TLS's own among them
    _events: list[Any]  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.windows = StreamWindows(STREAM_WINDOW, HOLD)
        self.ended: Terminated | None = None
        self.outbox: list[bytes] = []
        self.own = OwnPackets()
        self.balance = Balance()
        self.time = 0.0  # how far the core's was set ahead: it takes no earlier one
        self._before_done = 0  # bytes of authentic packets in the handshake
        self.host_cid = routable_cid(self.host_cid)

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        configured = self._configuration
        self._core = QuicConnectionCore(
            is_client=self._is_client,
            version=int(self._version or QuicProtocolVersion.VERSION_1),
            local_addr=("0.0.0.0", 0),
            remote_addr=remote_addr,
            source_cid=self.host_cid,
            destination_cid=initial_dcid,
            peer_address_validated=self._is_client,
            active_connection_id_limit=2,
            max_datagram_size=configured.max_datagram_size,
            probe_datagram_size=False,
            idle_timeout=configured.idle_timeout,
            ack_delay_exponent=3,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME,
            peer_max_datagram_frame_size=None,
            connection_receive_window=configured.max_data,
            connection_send_limit=0,
            stream_receive_window=WIDE_OPEN,
            stream_send_limit_bidi_local=0,
            stream_send_limit_bidi_remote=0,
            stream_send_limit_uni=0,
            max_stream_reassembly=STREAM_WINDOW,
            local_max_streams_bidi=STREAMS,
            local_max_streams_uni=UNIDIRECTIONAL,
            peer_max_streams_bidi=0,
            peer_max_streams_uni=0,
            initial_rtt=configured.initial_rtt,
            max_ack_delay=0.025,
            initial_time=now,
        )

    def _create_tls(self, remote_source_cid: bytes | None) -> KeyOnlyTls:
        self._tls = bridge = KeyOnlyTls(
            self._configuration,
            version=self._version,
            local_initial_source_connection_id=self.host_cid,
            remote_initial_source_connection_id=remote_source_cid,
            original_destination_connection_id=self._original_destination_connection_id,
        )
        return bridge

    def _drain_tls(self) -> None:
        parameters = self._tls.remote_transport_parameters
        if parameters is not None:
            # The core takes no less, though one id is enough where neither end ever sees an address change.
            parameters.active_connection_id_limit = 2
            # what the path carries counts, not the 1,472 that every qh3 client names
            parameters.max_udp_payload_size = self._configuration.max_datagram_size
        super()._drain_tls()

    def lower(self, size: int) -> None:
        """Keep datagrams to ``size`` bytes, for good: the core takes it for what the peer would receive."""
        peer = self._applied_transport_parameters
        if peer is not None:
            self._core.apply_peer_transport_parameters(
                connection_send_limit=peer.initial_max_data or 0,
                stream_send_limit_bidi_local=peer.initial_max_stream_data_bidi_local or 0,
                stream_send_limit_bidi_remote=peer.initial_max_stream_data_bidi_remote or 0,
                stream_send_limit_uni=peer.initial_max_stream_data_uni or 0,
                peer_max_streams_bidi=peer.initial_max_streams_bidi or 0,
                peer_max_streams_uni=peer.initial_max_streams_uni or 0,
                ack_delay_exponent=3 if peer.ack_delay_exponent is None else peer.ack_delay_exponent,
                max_ack_delay=0.025 if peer.max_ack_delay is None else peer.max_ack_delay / 1000,
                peer_idle_timeout=peer.max_idle_timeout / 1000 if peer.max_idle_timeout else None,
                max_datagram_frame_size=peer.max_datagram_frame_size,
                stateless_reset_token=peer.stateless_reset_token,
                active_connection_id_limit=2,
                disable_active_migration=bool(peer.disable_active_migration),
                max_udp_payload_size=size,
            )

    def forget_handshake(self) -> tuple[bytes | None, HandshakeDone]:
        """Let go of TLS, 10 kB, when it is done.

        Returns the key that CertificateVerify was checked with, as qh3 does whatever the verify mode, and the event.
        What TLS sends later, tickets say, is ignored.
        """
        certificate = self.get_peercert()
        secrets = self._tls.secrets
        self.own.begin(secrets[tls.Direction.ENCRYPT], secrets[tls.Direction.DECRYPT])
        done = HandshakeDone(NAMES[self._tls.tls.group], self._tls.tls.binding)
        self._tls = None
        self.__dict__ = dict(
            vars(self), _created_local_stream_ids=frozenset()
        )  # without room for more: 0.8 kB, not 1.6
        return (key_of(bytes(certificate.public_key())) if certificate is not None else None), done

    def listen(self, now: float) -> None:
        """Make ready for the client's first packet, as ``connect`` does for the server's.

        The stock connection makes its core from that packet; here it is made before, with the id that the knock named.
        """
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
                self._before_done += len(packet)
                if self._before_done > MAX_HANDSHAKE and not self._handshake_complete:
                    raise ValueError("too much before the handshake was complete")  # the core keeps 20 times as much
            self._drain_core()
            offset = end
        return packets

    def take_singly(self, datagrams: Sequence[bytes], now: float) -> tuple[int, int]:
        """Feed 1-RTT packets one by one; returns bytes and number of those that were authentic and new.

        The core tells how many there were of a reception, not which: once there was one that was not, the next
        ``SINGLY`` are fed so, and the backlog counts the bytes of new ones alone.
        """
        receive = self._core.receive_datagram
        new = [len(data) for data in datagrams if receive(data, VIRTUAL, now)[2]]
        backlog = self.windows.backlog
        backlog.singly = backlog.singly - 1 if len(new) == len(datagrams) else SINGLY
        return sum(new), len(new)

    def _drain_core(self) -> None:
        """Take the core's events, but for those behind ``HOLD`` bytes that wait for the application.

        Datagrams are among them, so with flows open all are taken; then the windows of streams bound what waits.
        """
        core, windows, deliver, queued = self._core, self.windows, self.windows.deliver, self._events
        next_event = core.next_event
        while windows.unread < HOLD or core.state in OVER or (windows.datagrams and windows.datagrams.has_flows):
            native = next_event()
            if native is None:
                return
            kind = native[0]
            if kind == "stream_data":
                _, stream_id, data, fin = native
                if not deliver(stream_id, len(data), fin):
                    core.close(QuicErrorCode.FLOW_CONTROL_ERROR, None, b"more than was granted")
                    self.end(Terminated(LOCAL, "the peer sent more than it was granted", False))
                    return
                queued.append(StreamData(stream_id, data, fin))
            elif (handler := HANDLERS.get(kind)) is not None:
                handler(self, native)

    def _on_crypto(self, native: Native) -> None:
        if self._tls is None:
            return
        _, epoch, offset, data = native
        try:
            self._tls.receive_crypto(tls.Epoch(epoch), data, offset, version=self._core.version)
            self._drain_tls()
        except QuicTlsBridgeError as error:
            self._core.close(error.error_code, int(error.frame_type), error.reason_phrase.encode())
            unproved = error.error_code in UNPROVEN and self._is_client and not self._handshake_complete
            self.end(unproven() if unproved else Terminated(LOCAL, error.reason_phrase, False))

    def _on_handshake_done(self, native: Native) -> None:
        self._handshake_confirmed = True
        self._core.handshake_confirmed()

    def _on_reset(self, native: Native) -> None:
        self.windows.end(native[1])
        self._events.append(StreamReset(native[1], native[2]))

    def _on_datagram(self, native: Native) -> None:
        self.windows.backlog.brought += len(native[1]) + FRAME
        self._events.append(Datagram(native[1]))

    def _on_stop(self, native: Native) -> None:
        self._events.append(StopSending(native[1], native[2]))

    def _on_blocked(self, native: Native) -> None:
        if native[1] is not None:
            self.windows.on_blocked(native[1], native[2])

    def _on_cid(self, native: Native) -> None:
        if native[0] == "connection_id_retired":
            self._events.append(CidRetired(native[1]))
        elif native[1][:2] not in MAINLINE:  # chosen in the core: the one in 32,768 is simply never routed
            self._events.append(CidIssued(native[1]))

    def _on_peer_closed(self, native: Native) -> None:
        _, application, code, _, reason = native
        self.end(Terminated(code if application else LOCAL, reason.decode("utf8", "replace"), True))

    def _on_protocol_error(self, native: Native) -> None:
        self.end(Terminated(LOCAL, f"the peer broke the protocol: {native[3]}", False))

    def _on_terminated(self, native: Native) -> None:
        self.end(ended_locally(native[3].decode("utf8", "replace")))

    def end(self, ended: Terminated) -> None:
        """Record why the connection ended; the first reason stays."""
        if self.ended is None:
            self.ended = ended

    def poll(self, now: float) -> None:
        """Move the datagrams that the core may send now to ``outbox``, and count its 1-RTT packets.

        What its pacer holds back for less than ``AHEAD_S`` goes at once: it charges each packet as one of the largest
        size, and a wait of microseconds takes the event loop's whole millisecond. For that the core's ``time`` goes
        ahead of the clock's, and never back.

        Before the handshake is complete a listener may run into the limit on what an unproven client is sent (RFC 9000
        section 8.1), which the core raises as RuntimeError. Raises PeerFault when far more is in flight than the
        congestion window allows and the peer goes on to send: it asks for answers without end, and takes none. Of a
        peer that is silent it proves nothing: probes alone, of 4,000 bytes within a host, add up to as much.
        """
        core, own = self._core, self.own
        at = max(now, self.time)
        try:
            while True:
                while (sent := core.poll_transmit(at)) is not None:
                    data = sent[0]
                    if not data[0] & LONG:
                        own.last = data
                        own.number += 1
                    self.outbox.append(data)
                timer = core.get_timer()
                if timer is None or timer[0] != "pacing" or not at <= timer[1] <= now + AHEAD_S:
                    break
                at = self.time = timer[1] + MICROSECOND
        except RuntimeError:
            if self._handshake_complete:
                raise
            # What an unproven client may be sent is less than the next packet: wait for more from it.
        balance, in_flight, window = self.balance, core.bytes_in_flight, core.congestion_window
        if window > balance.widest:
            balance.widest = window
        if in_flight <= 2 * balance.widest:
            balance.received = 0
        else:
            balance.look(in_flight)

    def ping(self) -> None:
        """Ask for an acknowledgement, in a packet to come."""
        if self._handshake_complete and self._core.state not in OVER:
            self._core.send_ping(0)


def coalesced(datagrams: list[bytes]) -> list[bytes]:
    """Return ``datagrams`` with what fits one in one (RFC 9000 section 12.2), for the core gives each packet its own.

    A packet of the handshake says where it ends, so another may follow.
    """
    found: list[bytes] = []
    for data in datagrams:
        if found and len(found[-1]) + len(data) <= BASE_MTU and _is_open_ended(found[-1]):
            found[-1] += data
        else:
            found.append(data)
    return found


def _is_open_ended(data: bytes) -> bool:
    try:
        return bool(data[0] & LONG) and bool(pull_quic_header(data, 0, CID_LENGTH)[9] == len(data))
    except ValueError:
        return False


HANDLERS: dict[str, Callable[[Qh3Connection, Native], None]] = {
    "crypto_data": Qh3Connection._on_crypto,
    "handshake_done": Qh3Connection._on_handshake_done,
    "stream_reset": Qh3Connection._on_reset,
    "datagram": Qh3Connection._on_datagram,
    "stop_sending": Qh3Connection._on_stop,
    "peer_blocked": Qh3Connection._on_blocked,
    "connection_id_issued": Qh3Connection._on_cid,
    "connection_id_retired": Qh3Connection._on_cid,
    "peer_closed": Qh3Connection._on_peer_closed,
    "protocol_error": Qh3Connection._on_protocol_error,
    "connection_terminated": Qh3Connection._on_terminated,
}


@lru_cache(maxsize=1024)
def _credentials(identity: Identity) -> tuple[Any, Any]:
    loaded = QuicConfiguration()
    loaded.load_cert_chain(
        pem("CERTIFICATE", certificate_of(identity)),
        pem("PRIVATE KEY", private_key_of(identity)),
    )
    return loaded.certificate, loaded.private_key


class Configuration(QuicConfiguration):
    """QuicConfiguration with the groups of the key exchange."""

    groups: tuple[int, ...] = ()


@lru_cache(maxsize=1024)
def configuration(
    listener: Identity | None, idle_timeout: float, size: int = BASE_MTU, groups: tuple[int, ...] = GROUPS[ON]
) -> Configuration:
    """Return what a connection is made with: that of a listener with its certificate, or of any dialler (None)."""
    certificate, private_key = _credentials(listener) if listener is not None else (None, None)
    made = Configuration(
        certificate=certificate,
        cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        max_datagram_size=size,
        private_key=private_key,
        probe_datagram_size=False,
        signature_algorithms=[tls.SignatureAlgorithm.ED25519],
        supported_versions=[QuicProtocolVersion.VERSION_1],
        **settings(listener is None, idle_timeout),
    )
    made.groups = groups
    return made
