"""The interface of a QUIC implementation: sans-IO, addressless, keyed by connection id.

An engine knows packets, streams and loss recovery. It does not know addresses (``paths/``), which peers may
connect (``stack/``) or what a Hello is (``hello.py``). Engines interoperate: they speak QUIC version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from meshnode.base.limits import BASE_MTU
from meshnode.base.value import value
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.datagram_queue import DatagramQueue

ALPN = "meshnode/1"
MAX_DATAGRAM_FRAME = 65_535  # the transport parameter of RFC 9221 section 3: any that fits a packet is taken
WRONG_KEY = -1  # Terminated.code: the listener proved a key that is not the dialled one
IDLE = -2  # Terminated.code: nothing was heard for the idle timeout
LOCAL = -3  # Terminated.code: closed or failed here


@value
class HandshakeDone:
    """TLS is complete; for a dialler, the listener's key is proven.

    ``group`` is that of the key exchange: X25519MLKEM768 or X25519. ``binding`` (32 bytes) follows from TLS's secret:
    the two ends of one TLS connection have the same, and no other two.
    """

    group: str
    binding: bytes


@value
class StreamData:
    """In-order bytes of a stream, and whether they were its last."""

    stream_id: int
    data: bytes
    fin: bool


@value
class StreamReset:
    """The peer dropped its sending direction (RFC 9000 section 19.4)."""

    stream_id: int
    code: int


@value
class StopSending:
    """The peer reads this stream no more (RFC 9000 section 19.5)."""

    stream_id: int
    code: int


@value
class Datagram:
    """The payload of a DATAGRAM frame (RFC 9221): once, whole, in any order, or never."""

    data: bytes


@value
class CidIssued:
    """Datagrams with this connection id belong to the connection from now on."""

    cid: bytes


@value
class CidRetired:
    """The peer will not use this connection id again."""

    cid: bytes


@value
class Terminated:
    """The connection is over. ``code`` is the peer's when ``by_peer``, else WRONG_KEY, IDLE or LOCAL."""

    code: int
    reason: str
    by_peer: bool


NO_GROUP = "no key exchange that this node accepts was offered"  # the reason of a listener, as its dialler hears it
TokenFor = Callable[[bytes], bytes]  # original destination connection id -> the token of the first Initial
EngineEvent = HandshakeDone | StreamData | Datagram | StreamReset | StopSending | CidIssued | CidRetired | Terminated


class Engine(Protocol):
    """One connection. Times are monotonic seconds; sizes are bytes of UDP payload."""

    datagrams: DatagramQueue  # what waits to be sent in DATAGRAM frames; the next ``transmit`` takes from it

    @property
    def odcid(self) -> bytes:
        """The original destination connection id."""

    @property
    def host_cid(self) -> bytes:
        """Our first connection id, 8 bytes; further ones come as CidIssued."""

    @property
    def peer_certificate_key(self) -> bytes | None:
        """The listener's raw Ed25519 key (32 bytes), proven by CertificateVerify.

        None before HandshakeDone, for the listener's own end, and when the certificate has a key of another kind.
        """

    @property
    def handshake_confirmed(self) -> bool:
        """True once the peer surely has 1-RTT keys (RFC 9001 section 4.1.2)."""

    @property
    def backlog(self) -> int:
        """Bytes that came behind holes in streams, estimated at the last ``receive``; 0 where ``unread`` has them."""

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        """Feed datagrams that came together from one source, in the order of arrival.

        Returns True when one held the newest authenticated 1-RTT packet so far: only such a one may prove that the peer
        has moved (RFC 9000 section 9.3). Never raises, whatever the bytes: what breaks the protocol is a Terminated.
        """

    def transmit(self, now: float) -> list[bytes]:
        """Return the datagrams to send now, as far as congestion control and pacing allow.

        Each has at most the size last set by ``set_datagram_size``. Empty when there is nothing to send.
        """

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` is due, None when nothing is awaited.

        It changes with every other call, so ask again after each.
        """

    def on_timer(self, now: float) -> None:
        """Let loss detection, pacing, closing and idle timers fire; call ``transmit`` next."""

    def events(self) -> Sequence[EngineEvent]:
        """Take what has happened, in its order; call it after ``receive``, ``on_timer`` and ``transmit``.

        Terminated comes once and last; it does not come after ``close`` and ``abandon``.
        """

    def open_stream(self) -> int:
        """Reserve a bidirectional stream and return its id.

        The dialler's are 0, 4, 8 and so on, the listener's 1, 5, 9 (RFC 9000 section 2.1).
        The peer hears of it with its first bytes. Raises StreamLimitError when the peer grants no more.
        """

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool = False) -> None:
        """Queue bytes on a stream, ``fin`` with the last; one that is finished or was reset swallows them.

        There is no bound here: ``queued_bytes`` tells when to stop.
        """

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction (RESET_STREAM): what is queued is dropped.

        Does nothing when it is over.
        """

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to end its direction (STOP_SENDING).

        Does nothing when it is over.
        """

    def queued_bytes(self, stream_id: int) -> int:
        """Return the bytes written and not yet acknowledged; 0 for a stream that is not known.

        An engine that does not know it by stream may count at most 256 KiB of what is in flight.
        """

    def consumed(self, stream_id: int, count: int) -> bool:
        """Move the receive windows by the ``count`` bytes that the application took.

        Returns True when the peer must be told, in the next ``transmit``: a window would move by a quarter of its size.
        """

    def unread(self) -> int:
        """Return the bytes of all streams that arrived and that the application has not taken (``consumed``)."""

    def in_flight(self) -> int:
        """Return the bytes sent and neither acknowledged nor lost."""

    def rtt(self) -> float | None:
        """Return the smoothed round trip in seconds, None before the first sample."""

    def nudge(self, now: float) -> None:
        """Send the oldest of what is in flight again at once, because the path has changed and it may be lost.

        The probe timeout no longer backs off. What was sent on the old path is no sign of congestion on the new one
        (RFC 9000 section 9.4).
        """

    def set_datagram_size(self, size: int) -> None:
        """Make packets of at most ``size`` bytes from now on; an engine may keep to less."""

    def ping(self) -> None:
        """Ask for an acknowledgement with the next ``transmit``."""

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE with an application code (RFC 9000 section 19.19).

        One ``transmit`` sends it.
        """

    def abandon(self) -> None:
        """Forget the connection; nothing more is sent."""

    def release(self) -> None:
        """Drop all that the engine holds, circles included, so that its memory is free at once; the last call."""


class EngineFactory(Protocol):
    """Factory of engines of one kind."""

    @property
    def name(self) -> str:
        """The word that ``Config.engine`` and the status have for this kind."""

    def dial(
        self,
        identity: Identity,
        peer: NodeId,
        token_for: TokenFor,
        idle_timeout: float,
        now: float,
        size: int = BASE_MTU,
    ) -> Engine:
        """Begin a connection.

        Args:
            identity: This node, whose key the connection is closed or opened with later, in the Hello.
            peer: The node dialled; an engine does not check that its key is proven, the connection does.
            token_for: Makes the knock for the original destination connection id.
            idle_timeout: Seconds without a packet of the peer until IDLE; ``inf`` for never.
            now: The time.
            size: Bytes that datagrams may have from the start; an engine may begin with less.
        """

    def accept(self, identity: Identity, odcid: bytes, idle_timeout: float, now: float, size: int = BASE_MTU) -> Engine:
        """Make the listener's end for an Initial that carried a valid knock for ``odcid``.

        Feed it next.
        """
