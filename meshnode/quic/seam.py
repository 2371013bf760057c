"""The seam between us and a QUIC implementation: sans-IO, addressless, keyed by connection id.

An engine knows packets, streams and loss recovery. It does not know addresses (``paths/``), who may
connect (``stack/``) or what a Hello is (``hello.py``). Engines interoperate: they speak QUIC version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

ALPN = "meshnode/1"
WRONG_KEY = -1  # Terminated.code: the listener proved a key that is not the dialled one
IDLE = -2  # Terminated.code: nothing was heard for the idle timeout
LOCAL = -3  # Terminated.code: closed or failed here


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """TLS is complete; for a dialler, the listener's key is proven."""


@dataclass(frozen=True, slots=True)
class StreamData:
    """In-order bytes of a stream, and whether they were its last."""

    stream_id: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer dropped its sending direction."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class StopSending:
    """The peer reads this stream no more."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class CidIssued:
    """Route this connection id to us from now on."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class CidRetired:
    """The peer will not use this connection id again."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class Terminated:
    """The connection is over. ``code`` is the peer's when ``by_peer``, else one of ours above."""

    code: int
    reason: str
    by_peer: bool


TokenFor = Callable[[bytes], bytes]  # original destination connection id -> the token of the first Initial
EngineEvent = HandshakeDone | StreamData | StreamReset | StopSending | CidIssued | CidRetired | Terminated


class Engine(Protocol):
    """One connection. Times are monotonic seconds; sizes are bytes of UDP payload."""

    @property
    def odcid(self) -> bytes:
        """The original destination connection id."""

    @property
    def host_cid(self) -> bytes:
        """Our first connection id."""

    @property
    def peer_certificate_key(self) -> bytes | None:
        """Dialler: the listener's proven raw Ed25519 key, once the handshake is done."""

    @property
    def handshake_confirmed(self) -> bool: ...

    @property
    def pto_count(self) -> int: ...

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram; True when it held the newest authenticated 1-RTT packet so far. Never raises."""

    def transmit(self, now: float) -> list[bytes]:
        """Return the datagrams to send now."""

    def next_timer(self) -> float | None:
        """When ``on_timer`` is due."""

    def on_timer(self, now: float) -> None: ...

    def events(self) -> Sequence[EngineEvent]:
        """Take what has happened; call it after ``receive``, ``on_timer`` and ``transmit``."""

    def open_stream(self) -> int:
        """Reserve a bidirectional stream; raises StreamLimitError when the peer grants no more."""

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None: ...

    def reset(self, stream_id: int, code: int) -> None: ...

    def stop(self, stream_id: int, code: int) -> None: ...

    def queued_bytes(self, stream_id: int) -> int:
        """Bytes written and not yet acknowledged."""

    def consumed(self, stream_id: int, count: int) -> bool:
        """The application took ``count`` bytes: the receive windows follow. True when the peer must be told."""

    def in_flight(self) -> int: ...

    def rtt(self) -> float | None:
        """The smoothed round trip, None before the first sample."""

    def nudge(self, now: float) -> None:
        """The path has changed: what is in flight may be lost, so send the oldest of it again at once."""

    def set_datagram_size(self, size: int) -> None: ...

    def ping(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def abandon(self) -> None:
        """Forget the connection; not a byte is sent."""


class EngineFactory(Protocol):
    """Makes engines of one kind."""

    @property
    def name(self) -> str: ...

    def dial(self, identity: Identity, peer: NodeId, token_for: TokenFor, idle_timeout: float, now: float) -> Engine:
        """Begin a connection; ``token_for`` makes the knock for the original destination connection id."""

    def accept(self, identity: Identity, odcid: bytes, idle_timeout: float, now: float) -> Engine:
        """Await the Initial that carried a valid knock for ``odcid``; feed it next."""
