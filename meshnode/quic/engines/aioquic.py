"""aioquic's QuicConnection behind the seam: the reference, and the engine where qh3 is not installed.

Every private attribute of aioquic that we touch is touched in this file and ``aioquic_sending.py``, and its
presence is checked at import (``_check``); the version is pinned. aioquic sees one constant virtual address, so
neither end's move ever reaches it; flow control follows consumption, because its own windows double regardless.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

from meshnode.quic.engines.deferred import deferred

with deferred():
    from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, QuicConnection, QuicConnectionError, QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.recovery import QuicPacketPacer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import Certificate, load_der_x509_certificate

from meshnode.base.limits import BASE_MTU, MAX_CRYPTO
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.engines.aioquic_sending import Sending
from meshnode.quic.engines.aioquic_tls import check as check_tls
from meshnode.quic.engines.aioquic_tls import end_handshake, peer_key, take_over
from meshnode.quic.engines.certificate import certificate_of
from meshnode.quic.engines.common import (
    CONNECTION_WINDOW,
    MICROSECOND,
    NO_EVENTS,
    STREAM_WINDOW,
    STREAMS,
    UNPROVEN,
    check_attributes,
    check_stream_limit,
    ended_locally,
    protocol_violation,
    routable_cid,
    settings,
    unproven,
)
from meshnode.quic.engines.key_exchange import GROUPS, ON
from meshnode.quic.engines.ranges import Holes, Ranges, StreamsOf
from meshnode.quic.seam import (
    LOCAL,
    MAX_DATAGRAM_FRAME,
    CidIssued,
    CidRetired,
    Datagram,
    EngineEvent,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
    TokenFor,
)

VIRTUAL = ("virtual", 0)
NUDGE_PACKETS = 32  # declared lost at a path switch; their ACKs reveal the rest (measured: 44 to 51 ms in bulk)
PACER_BURST_S = 0.002  # the timer granularity of an event loop
EPOCH = tls.Epoch.ONE_RTT
SILENT = logging.getLogger("meshnode.quic.aioquic")
SILENT.propagate = False
SILENT.addHandler(logging.NullHandler())
FIRST = itemgetter(0)


class _Pacer(QuicPacketPacer):
    """Keeps the rate, but lets one burst cover what an event loop's timer cannot resolve."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, PACER_BURST_S)


class _Quic(Sending):
    """QuicConnection with key-only TLS and receive windows that follow what the application consumed."""

    def __init__(self, groups: tuple[int, ...], **kwargs: object) -> None:
        self.groups = groups
        self.consumed: dict[int, int] = {}
        self.consumed_total = 0
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._logger.logger = SILENT
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = STREAMS
        self._loss._pacer = _Pacer(max_datagram_size=self._max_datagram_size)
        self._holes = Holes()
        self._streams = StreamsOf(self._holes)
        self._host_cids[0].cid = self.host_cid = routable_cid(self.host_cid)
        self._local_initial_source_connection_id = self.host_cid

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        take_over(self.tls, self.groups)
        for stream in self._crypto_streams.values():
            stream.receiver._ranges = Ranges(self._holes)

    def _replenish_connection_ids(self) -> None:
        """Issue no spare ids: neither end ever sees an address change, and each costs a frame and a route."""
        if not self._host_cids:
            super()._replenish_connection_ids()

    def _handle_crypto_frame(self, context: Any, frame_type: int, buf: Any) -> None:
        """Refuse what is far ahead: aioquic fills a hole of up to 512 kB with zeros, for one packet of a stranger."""
        at = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(at)
        if end - self._crypto_streams[context.epoch].receiver.starting_offset() > MAX_CRYPTO:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too much crypto buffering")
        super()._handle_crypto_frame(context, frame_type, buf)

    def return_undelivered(self, stream_id: int) -> None:
        """Count what a reset left undelivered as consumed: it fills the connection's window and is never read."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.receiver._final_size is not None:
            self.consumed_total += stream.receiver._final_size - stream.receiver._buffer_start

    def closed(self) -> Terminated:
        """Return what ended the connection, in the seam's terms; aioquic has recorded it before."""
        event = self._close_event
        assert event is not None
        if self._state is QuicConnectionState.DRAINING:  # set by the peer's CONNECTION_CLOSE alone
            own_code = event.frame_type is None  # RFC 9000 section 19.19: only 0x1d carries application codes
            return Terminated(event.error_code if own_code else LOCAL, event.reason_phrase, True)
        if event.error_code in UNPROVEN and not self._handshake_complete:
            return unproven()
        return ended_locally(event.reason_phrase)


def _translated(quic: _Quic, event: Any) -> EngineEvent | None:
    """Return the seam's form of any event but stream data, None for what the seam does not have."""
    kind = type(event)
    if kind is quic_events.DatagramFrameReceived:
        return Datagram(event.data)
    if kind is quic_events.HandshakeCompleted:
        quic._crypto_buffers = {epoch: Buffer(capacity=64) for epoch in quic._crypto_buffers}  # of 16 kB, used no more
        return HandshakeDone(*end_handshake(quic.tls))
    if kind is quic_events.ConnectionIdIssued:
        return CidIssued(event.connection_id)
    if kind is quic_events.ConnectionIdRetired:
        return CidRetired(event.connection_id)
    if kind is quic_events.StreamReset:
        quic.return_undelivered(event.stream_id)
        return StreamReset(event.stream_id, event.error_code)
    if kind is quic_events.StopSendingReceived:
        return StopSending(event.stream_id, event.error_code)
    return None


def _joined(event: Any, queued: deque[Any]) -> StreamData:
    """Return stream data with what the next events bring of the same stream: its reader wakes once for all of it."""
    stream_id, fin, parts = event.stream_id, event.end_stream, [event.data]
    while queued and type(event := queued[0]) is quic_events.StreamDataReceived and event.stream_id == stream_id:
        queued.popleft()
        parts.append(event.data)
        fin = event.end_stream
    return StreamData(stream_id, parts[0] if len(parts) == 1 else b"".join(parts), fin)


class AioquicEngine:
    """One connection; see ``meshnode.quic.seam.Engine`` for the contract of each method."""

    backlog = 0  # unread() has it, and Holes bounds its pieces

    def __init__(self, quic: _Quic, odcid: bytes) -> None:
        self.odcid = odcid
        self.host_cid = quic.host_cid
        self.datagrams = DatagramQueue(quic._datagrams_pending, lambda: quic._remote_max_datagram_frame_size)
        self._quic = quic
        self._abandoned = False
        self._end_reported = False
        self._has_written = False
        self._failure: Terminated | None = None

    @property
    def peer_certificate_key(self) -> bytes | None:
        """The listener's proven key (aioquic checks CertificateVerify whatever the verify mode)."""
        return peer_key(self._quic.tls)

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 section 4.1.2."""
        return bool(self._quic._handshake_confirmed)

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        """Feed datagrams; the exceptions that aioquic raises on junk end the connection."""
        quic = self._quic
        space = quic._spaces.get(EPOCH)
        before = space.largest_received_packet if space is not None else -1
        try:
            for data in datagrams:
                quic.receive_datagram(data, VIRTUAL, now)
        except (QuicConnectionError, BufferReadError, ValueError, AssertionError, KeyError, IndexError) as error:
            self._fail(error)
            return False
        if space is None:
            space = quic._spaces.get(EPOCH)
            if space is None:
                return False
        return bool(space.largest_received_packet > before)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = protocol_violation(error)
        self.abandon()

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams."""
        quic = self._quic
        if self._abandoned or not quic._network_paths:
            return []
        if self._has_written or quic._datagrams_pending:  # the acknowledgement rides with it, not 1 ms later, alone
            self._has_written = False
            space = quic._spaces.get(EPOCH)
            if space is not None and space.ack_at is not None and space.ack_at > now:
                space.ack_at = now
        return [*map(FIRST, quic.datagrams_to_send(now))]

    def next_timer(self) -> float | None:
        """aioquic's one timer; a microsecond late, because firing exactly on it can spin."""
        quic = self._quic
        if self._abandoned or quic._close_at is None:
            return None
        at = quic.get_timer()
        return None if at is None else at + MICROSECOND

    def on_timer(self, now: float) -> None:
        """Let loss detection, pacing, closing and idle timers fire.

        aioquic compares with the loss time that ``get_timer`` computed last, so that is asked first.
        """
        quic = self._quic
        if not self._abandoned and quic._close_at is not None:
            quic.get_timer()  # refreshes the loss time that handle_timer compares with
            quic.handle_timer(now)

    def events(self) -> Sequence[EngineEvent]:
        """Translate what aioquic has queued, and report the end once, after all that came before it."""
        quic = self._quic
        queued = quic._events
        ended = not self._end_reported and (self._failure is not None or quic._close_event is not None)
        if not queued and not ended:
            return NO_EVENTS
        found: list[EngineEvent] = []
        while queued:
            event: Any = queued.popleft()
            if type(event) is quic_events.StreamDataReceived:
                found.append(_joined(event, queued))
            elif (translated := _translated(quic, event)) is not None:
                found.append(translated)
        if ended:
            self._end_reported = True
            found.append(self._failure or quic.closed())
        return found

    def open_stream(self) -> int:
        """Reserve the next bidirectional stream id.

        aioquic would queue a stream above the peer's limit until it is raised, so the limit is checked here.
        """
        quic = self._quic
        stream_id = quic.get_next_available_stream_id()
        check_stream_limit(stream_id // 4, quic._remote_max_streams_bidi)
        quic._get_or_create_stream_for_send(stream_id)
        return int(stream_id)

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        stream = self._quic._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None or stream.sender._buffer_fin is not None:
            return
        self._has_written = True
        self._quic.send_stream_data(stream_id, cast("bytes", data), fin)  # is added to a bytearray

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction."""
        if stream_id in self._quic._streams:
            self._quic.reset_stream(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to end its direction."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self._quic.stop_stream(stream_id, code)

    def queued_bytes(self, stream_id: int) -> int:
        """Written and unacknowledged."""
        stream = self._quic._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        return int(stream.sender._buffer_stop - stream.sender._buffer_start)

    def consumed(self, stream_id: int, count: int) -> bool:
        """Advance the receive windows.

        The limits themselves are written in ``_Quic``, with the next packet. Counts of streams that are over are
        dropped once there are more than 1,024.
        """
        quic = self._quic
        quic.consumed_total += count
        due = quic.consumed_total + CONNECTION_WINDOW - quic._local_max_data.value >= CONNECTION_WINDOW // 4
        stream = quic._streams.get(stream_id)
        if stream is not None:
            total = quic.consumed[stream_id] = quic.consumed.get(stream_id, 0) + count
            return due or total + STREAM_WINDOW - stream.max_stream_data_local >= STREAM_WINDOW // 4
        quic.consumed.pop(stream_id, None)
        if len(quic.consumed) > 1024:
            quic.consumed = {k: v for k, v in quic.consumed.items() if k in quic._streams}
        return due

    def unread(self) -> int:
        """Bytes that arrived and were not consumed, what is missing between them included."""
        return int(self._quic._local_max_data.used) - self._quic.consumed_total

    def in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return int(self._quic._loss.bytes_in_flight)

    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        loss = self._quic._loss
        return loss._rtt_smoothed if loss._rtt_initialized else None

    def nudge(self, now: float) -> None:
        """Declare the oldest in flight lost, without a congestion event, and send a probe.

        At most ``NUDGE_PACKETS``: their acknowledgements reveal the rest. Before the handshake is confirmed all data is
        scheduled again instead.
        """
        quic = self._quic
        if self._abandoned or quic._state in END_STATES or not quic._network_paths:
            return
        loss = quic._loss
        loss._pto_count = 0
        cc: Any = loss._cc
        cc._congestion_recovery_start_time = now  # losses of what was sent before now are no congestion
        space = quic._spaces.get(EPOCH)
        if not quic._handshake_confirmed or space is None:
            loss.reschedule_data(now=now)
            return
        oldest = tuple(space.sent_packets.values())[:NUDGE_PACKETS]
        if oldest:
            loss._on_packets_lost(congestion_event=False, now=now, space=space, packets=oldest)
        loss._send_probe()

    def set_datagram_size(self, size: int) -> None:
        """Make packets of at most ``size`` bytes from now on.

        Connection, pacer and congestion control each have their own copy; the window itself stays as it was.
        """
        quic = self._quic
        quic._max_datagram_size = size
        quic._loss._pacer._max_datagram_size = size
        cc: Any = quic._loss._cc
        cc._max_datagram_size = size

    def ping(self) -> None:
        """Ask for an acknowledgement."""
        if not self._abandoned:
            self._quic.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE.

        Nothing is sent by a listener that has received nothing: aioquic does not know where to.
        """
        if not self._abandoned and self._quic._network_paths:
            self._end_reported = True
            self._quic.close(error_code=code, reason_phrase=reason)

    def abandon(self) -> None:
        """Stop without a byte."""
        self._abandoned = True
        self._quic._close_at = None
        self._quic._set_state(QuicConnectionState.TERMINATED)

    def release(self) -> None:
        """Cut the circles of aioquic's connection: bound methods in its tables and in TLS's callbacks."""
        vars(self._quic).clear()


class AioquicEngines:
    """Factory of AioquicEngine objects; ``post_quantum`` is as in ``Config``."""

    name = "aioquic"

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
    ) -> AioquicEngine:
        """Begin a connection; the caller compares the proven key with ``peer``."""
        quic = _Quic(self._groups, configuration=_configuration(identity, True, idle_timeout))
        odcid = quic.original_destination_connection_id
        quic._peer_token = token_for(odcid)
        quic.connect(VIRTUAL, now)
        return AioquicEngine(quic, odcid)

    def accept(
        self, identity: Identity, odcid: bytes, idle_timeout: float, now: float, size: int = BASE_MTU
    ) -> AioquicEngine:
        """Make the listener's end for the Initial with this original destination connection id."""
        quic = _Quic(
            self._groups,
            configuration=_configuration(identity, False, idle_timeout),
            original_destination_connection_id=odcid,
        )
        return AioquicEngine(quic, odcid)


@lru_cache(maxsize=1024)  # a node has one identity; a simulation has many
def _credentials(identity: Identity) -> tuple[Certificate, Any]:
    return load_der_x509_certificate(certificate_of(identity)), Ed25519PrivateKey.from_private_bytes(identity.seed)


def _configuration(identity: Identity, is_client: bool, idle_timeout: float) -> QuicConfiguration:
    certificate, private = _credentials(identity)
    return QuicConfiguration(
        certificate=certificate,
        cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        private_key=private,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        **settings(is_client, idle_timeout),
    )


PRIVATE = {
    "": (
        "_close_at _close_event _crypto_buffers _crypto_streams _datagrams_pending _events "
        "_get_or_create_stream_for_send _handle_crypto_frame _handshake_complete _handshake_confirmed _host_cids "
        "_initialize _local_initial_source_connection_id _local_max_data _local_max_streams_bidi _logger _loss "
        "_max_datagram_size _network_paths _peer_token _remote_max_datagram_frame_size _remote_max_streams_bidi "
        "_replenish_connection_ids _set_state _spaces _state _streams _streams_queue "
        "_write_application(builder,network_path,now) _write_connection_limits(builder,space) "
        "_write_stream_limits(builder,space,stream)"
    ),
    "_loss": (
        "_cc _on_packets_lost(congestion_event,now,space,packets) _pacer _pto_count _rtt_initialized _rtt_smoothed "
        "_send_probe reschedule_data(now)"
    ),
    "_local_max_data": "used value",
    "_loss._cc": "_congestion_recovery_start_time _max_datagram_size",
    "_loss._pacer": "_max_datagram_size bucket_max",
}


def _check() -> None:
    """Fail at start-up when this aioquic is not the one that this file was written against."""
    check_attributes("aioquic", QuicConnection(configuration=QuicConfiguration(is_client=True)), PRIVATE)
    check_tls()


_check()
FACTORY = AioquicEngines()
