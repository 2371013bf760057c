"""qh3's QuicConnection with key-only TLS, its event queue in the seam's terms, and packets of our own for credit.

Used by ``qh3.py`` alone, which checks at import that all private attributes touched here are present.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from qh3 import tls
from qh3._hazmat import pull_quic_header
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicErrorCode, QuicProtocolVersion
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsBridgeError

from meshnode.base.limits import BASE_MTU
from meshnode.identity.keys import Identity
from meshnode.quic.engines.certificate import certificate_of
from meshnode.quic.engines.common import MAINLINE, STREAM_WINDOW, ended_locally, routable_cid, settings
from meshnode.quic.engines.credit import CreditSealer, StreamWindows
from meshnode.quic.packets import CID_LENGTH, FIXED, LONG
from meshnode.quic.seam import LOCAL, CidIssued, CidRetired, StopSending, StreamData, StreamReset, Terminated

VIRTUAL = ("2001:db8::1", 1)  # the core parses it; a documentation address, which no node has (RFC 3849)
WIDE_OPEN = 1 << 60  # a core's window that never moves: it would at half of this
HOLD = 3 * STREAM_WINDOW  # bytes a peer may make us keep unread; with the core's own window 10 MB a connection
APPLICATION_SPACE = 2
OVER = ("closing", "draining", "terminated")

Native = tuple[Any, ...]  # an event of the core: its kind, then its fields


class Qh3Connection(QuicConnection):
    """QuicConnection with key-only TLS, and an event queue that is left alone while the application lags."""

    _core: Any  # there from the start, for Retry and Version Negotiation, which replace it, never get here
    _tls: Any
    _events: Any  # a deque of the seam's events, and among them TLS's own

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.windows = StreamWindows(STREAM_WINDOW)
        self.ended: Terminated | None = None
        self.outbox: list[bytes] = []
        self._sealer: CreditSealer | None = None
        self._number = 0  # of the next 1-RTT packet
        self._last = b""  # the core's newest 1-RTT packet, always a datagram of its own
        self.host_cid = routable_cid(self.host_cid)

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        configured = self._configuration
        self._configuration = replace(configured, max_stream_data=WIDE_OPEN)
        super()._create_core(remote_addr, initial_dcid, now)
        self._configuration = configured

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        bridge = super()._create_tls(remote_source_cid)
        # Without the post-quantum share the ClientHello fits one datagram: the one that carries the knock.
        bridge.tls._supported_groups = [tls.Group.X25519]
        install = bridge.tls.update_traffic_key_cb

        def on_secret(direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes) -> None:
            if direction is tls.Direction.ENCRYPT and epoch is tls.Epoch.ONE_RTT:
                self._sealer = CreditSealer(secret)
            install(direction, epoch, suite, secret)

        bridge.tls.update_traffic_key_cb = on_secret
        return bridge

    def _drain_tls(self) -> None:
        parameters = self._tls.remote_transport_parameters
        if parameters is not None:
            parameters.active_connection_id_limit = (
                2  # one spare id is enough where the core never sees an address change
            )
        super()._drain_tls()

    @property
    def held(self) -> bool:
        """True while what waits for the application keeps us from taking more."""
        return self.windows.unread >= HOLD and self._core.state not in OVER

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
            self._drain_core()
            offset = end
        return packets

    def _drain_core(self) -> None:
        """Take the core's events, but for those that come while ``held``: they stay in its queue."""
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
                    self.end(Terminated(LOCAL, "the peer sent more than it was granted", False))
                    return
                self._events.append(StreamData(stream_id, data, fin))
            elif (handler := HANDLERS.get(kind)) is not None:
                handler(self, native)

    def _on_crypto(self, native: Native) -> None:
        _, epoch, offset, data = native
        try:
            self._tls.receive_crypto(tls.Epoch(epoch), data, offset, version=self._core.version)
            self._drain_tls()
        except QuicTlsBridgeError as error:
            self._core.close(error.error_code, int(error.frame_type), error.reason_phrase.encode())
            self.end(Terminated(LOCAL, error.reason_phrase, False))

    def _on_handshake_done(self, native: Native) -> None:
        self._handshake_confirmed = True
        self._core.handshake_confirmed()

    def _on_reset(self, native: Native) -> None:
        self.windows.forget(native[1])
        self._events.append(StreamReset(native[1], native[2]))

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

        Before the handshake is complete a listener may run into the limit on what an unproven client is sent (RFC 9000
        section 8.1), which the core raises as RuntimeError.
        """
        poll_transmit = self._core.poll_transmit
        try:
            while (sent := poll_transmit(now)) is not None:
                data = sent[0]
                if not data[0] & LONG:
                    self._last = data
                    self._number += 1
                self.outbox.append(data)
        except RuntimeError:
            if self._handshake_complete:
                raise
            # What an unproven client may be sent is less than the next packet: wait for more from it.

    def grant(self, grants: list[tuple[int, int]], now: float) -> None:
        """Add a packet with these (stream, limit) to ``outbox``, with the number after the core's last.

        Raises RuntimeError when that number is not known for sure.
        """
        if not self._last:
            self._core.send_ping(0)
            self.poll(now)
        sealer, number = self._sealer, self._number
        if sealer is None or not sealer.is_number(self._last, number - 1):
            # A number used twice would give the key away. No node updates its keys, so this does not happen.
            raise RuntimeError("the core's packet numbers are not known")
        self.outbox.append(sealer.seal(self._last[1 : 1 + CID_LENGTH], number, grants))
        self._number = number + 1
        self._core.restore_send_packet_number(APPLICATION_SPACE, self._number)


HANDLERS: dict[str, Callable[[Qh3Connection, Native], None]] = {
    "crypto_data": Qh3Connection._on_crypto,
    "handshake_done": Qh3Connection._on_handshake_done,
    "stream_reset": Qh3Connection._on_reset,
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
    certificate, private = certificate_of(identity)
    loaded = QuicConfiguration()
    loaded.load_cert_chain(
        certificate.public_bytes(Encoding.PEM),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return loaded.certificate, loaded.private_key


def configuration(listener: Identity | None, idle_timeout: float) -> QuicConfiguration:
    """Return what a connection is made with: that of a listener with its certificate, or of any dialler (None)."""
    certificate, private_key = _credentials(listener) if listener is not None else (None, None)
    return QuicConfiguration(
        certificate=certificate,
        cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
        max_datagram_frame_size=0,
        max_datagram_size=BASE_MTU,
        private_key=private_key,
        probe_datagram_size=False,
        signature_algorithms=[tls.SignatureAlgorithm.ED25519],
        supported_versions=[QuicProtocolVersion.VERSION_1],
        **settings(listener is None, idle_timeout),
    )
