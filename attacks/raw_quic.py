"""A member that speaks QUIC frame by frame: a real handshake and Hello, then 1-RTT packets of any payload.

``KINDS`` has the storms: what fills one packet, again and again, as dear for its receiver as the frame allows. Each is
a function of the packet's number, so that it costs the attacker next to nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from aioquic.tls import Epoch

from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import CONTROL_STREAM
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import make_hello
from meshnode.quic.seam import HandshakeDone

FIXED, LONG_NUMBER, KEY_PHASE = 0x40, 0x03, 0x04
ROOM = 1_150  # bytes of frames in a packet of 1,200
AHEAD = 1 << 20  # of stream bytes, beyond a hole
Storm = Callable[[int], bytes]
Exchange = Callable[[list[bytes]], list[bytes]]  # sends datagrams and returns what came back, for a while


def varint(value: int) -> bytes:
    """Return a variable-length integer (RFC 9000 section 16)."""
    if value < 1 << 6:
        return bytes([value])
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


class RawMember:
    """One connection of the attacker's, authenticated, whose further packets are made by hand."""

    def __init__(self, identity: Identity, to: NodeId, token_for: Callable[[bytes], bytes]) -> None:
        self._engine: Any = pick_engine("aioquic").dial(identity, to, token_for, 600.0, time.monotonic())
        self._identity = identity
        self._to = to
        self._number = 10_000

    @property
    def odcid(self) -> bytes:
        """The original destination connection id, which a listening end is made with."""
        return bytes(self._engine.odcid)

    def begin(self, exchange: Exchange) -> None:
        """Shake hands and say Hello. Raises RuntimeError when the other end does not answer."""
        engine = self._engine
        said, binding = False, b""
        for _ in range(50):
            now = time.monotonic()
            engine.on_timer(now)
            for datagram in exchange(engine.transmit(now)):
                engine.receive([datagram], time.monotonic())
            for event in engine.events():
                binding = event.binding if isinstance(event, HandshakeDone) else binding
            key = engine.peer_certificate_key
            if engine.handshake_confirmed and said:
                break
            if key is not None and binding and not said:
                said = True
                engine.open_stream()
                me, boot = self._identity, os.urandom(8)
                engine.send(CONTROL_STREAM, make_hello(me, self._to, engine.odcid, key, binding, boot=boot, record=b""))
        else:
            raise RuntimeError("no handshake")
        for _ in range(3):  # what is left, ACKs included
            for datagram in exchange(engine.transmit(time.monotonic())):
                engine.receive([datagram], time.monotonic())
        self._take_over()

    @classmethod
    def over(cls, engine: Any) -> RawMember:
        """Return a member that goes on with aioquic's end of a connection that is up."""
        member = cls.__new__(cls)
        member._engine, member._number = engine, 10_000
        member._take_over()
        return member

    def _take_over(self) -> None:
        self._crypto = self._engine._quic._cryptos[Epoch.ONE_RTT]
        self._cid = self._engine._quic._peer_cid.cid

    def packet(self, frames: bytes, *, update: bool = False) -> bytes:
        """Return a 1-RTT packet with these frames; ``update`` begins the next key phase with it."""
        crypto = self._crypto
        if update:
            crypto._update_key("local_update")
        self._number += 1
        phase = KEY_PHASE if crypto.send.key_phase else 0
        header = bytes([FIXED | LONG_NUMBER | phase]) + self._cid + (self._number & 0xFFFFFFFF).to_bytes(4, "big")
        made: bytes = crypto.send.encrypt_packet(header, frames, self._number)
        return made

    def of_no_key(self) -> bytes:
        """Return a datagram of 24 Handshake packets, for which the receiver has no keys any more."""
        one = b"\xe3\0\0\0\1\x08" + bytes(self._cid) + b"\0" + varint(30) + bytes(30)
        return one * (ROOM // len(one))

    def storm(self, kind: str) -> Callable[[], bytes]:
        """Return a function that gives one datagram of a kind after the other."""
        if kind == "long_headers":
            datagram = self.of_no_key()
            return lambda: datagram
        frames, update = KINDS[kind], kind == "key_updates"
        count = 0

        def one() -> bytes:
            nonlocal count
            count += 1
            return self.packet(frames(count), update=update)

        return one


def _many(frame: Callable[[int], bytes], count: int = 1_000) -> Storm:
    """Return a storm of packets full of frames, each made from its number over all packets."""

    def storm(number: int) -> bytes:
        found, size = [], 0
        for index in range(count):
            one = frame(number * count + index)
            size += len(one)
            if size > ROOM:
                break
            found.append(one)
        return b"".join(found)

    return storm


def _fixed(payload: bytes) -> Storm:
    return lambda _: payload


def _stream(stream: int, offset: int, data: bytes, fin: bool = False) -> bytes:
    return bytes([0x0E | fin]) + varint(stream) + varint(offset) + varint(len(data)) + data


APPLICATION = 4  # the dialler's second stream
PING, PADDING = b"\x01", b"\0"
KINDS: dict[str, Storm] = {
    "tiny": _fixed(PING + bytes(3)),
    "pings": _fixed(PING * ROOM),
    "padding": _fixed(PING + bytes(ROOM)),
    "max_data": _fixed((b"\x10" + varint(1 << 40)) * (ROOM // 9)),
    "max_streams": _fixed((b"\x12" + varint(2_048)) * (ROOM // 3)),
    "max_stream_data": _fixed((b"\x11" + varint(CONTROL_STREAM) + varint(1 << 29)) * (ROOM // 6)),
    "blocked": _fixed((b"\x14" + varint(1)) * (ROOM // 2)),
    "stream_blocked": _fixed((b"\x15" + varint(CONTROL_STREAM) + varint(1)) * (ROOM // 3)),
    "path_challenges": _fixed((b"\x1a" + bytes(8)) * (ROOM // 9)),
    "path_responses": _fixed((b"\x1b" + bytes(8)) * (ROOM // 9)),
    "empty_streams": _fixed(_stream(APPLICATION, 0, b"") * (ROOM // 4)),
    "stream_bytes": _many(lambda n: _stream(APPLICATION, n, b"\0"), 150),
    "stream_holes": _many(lambda n: _stream(APPLICATION, 2 * (n % (AHEAD // 2)) + 2, b"\0"), 150),
    "stream_pieces": _many(lambda n: _stream(4 * (n % 3 + 1), 2 * (n // 3 % AHEAD) + 2, b"\0"), 150),
    "stream_opens": _many(lambda n: _stream(4 * (n % 2_000 + 1), 0, b"\0"), 150),
    "stream_cycle": _many(lambda n: _stream(4 * (n + 1), 0, b"\x03abc", True), 100),
    "resets": _many(lambda n: b"\x04" + varint(4 * (n % 2_000 + 1)) + b"\0\0", 200),
    "stops": _many(lambda n: b"\x05" + varint(4 * (n % 2_000 + 1)) + b"\0", 200),
    "new_cids": _many(lambda n: b"\x18" + varint(n + 20) + varint(n + 20) + b"\x08" + os.urandom(24), 28),
    "retire_cids": _many(lambda n: b"\x19" + varint(n), 7),
    "ack_ranges": lambda n: b"\x02" + varint(9_000) + b"\0" + varint(500) + b"\0" + b"\0\0" * 500,
    "acks": _fixed((b"\x02" + varint(1) + b"\0\0\0") * (ROOM // 5)),
    "crypto_bytes": _many(lambda n: b"\x06" + varint(2 * (n % 8_000) + 1) + b"\x01\0", 190),
    "datagrams": _fixed((b"\x31\x01\0") * (ROOM // 3)),
    "key_updates": _fixed(PING + bytes(3)),
    "long_headers": _fixed(b""),
}
