"""Packets with any frames, as a stranger can make them of an Initial and a member of a connection."""

from __future__ import annotations

from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoPair

from meshnode.identity.keys import Identity
from meshnode.quic.engines import pick_engine
from meshnode.quic.engines.aioquic import EPOCH, AioquicEngine
from meshnode.quic.seam import Engine

ONE, OTHER = Identity(bytes(32)), Identity(bytes(range(32)))
ODCID = b"12345678"
LAST_NUMBER = 60_000  # of two bytes


def shuttle(one: Engine, other: Engine, now: float = 0.0) -> None:
    """Carry datagrams both ways until none is left."""
    for turn in range(20):
        at = now + turn * 0.01
        out = [one.transmit(at), other.transmit(at)]
        if not any(out):
            return
        for source, target in zip(out, (other, one), strict=True):
            for data in source:
                target.receive([data], at)


def protected(engine: AioquicEngine, payload: bytes, number: int) -> bytes:
    """A 1-RTT packet with any frames, properly encrypted: what a hostile member can send."""
    quic = engine._quic
    crypto = quic._cryptos[EPOCH]
    buf = Buffer(capacity=2000)
    buf.push_uint8(0x41)
    buf.push_bytes(quic._peer_cid.cid)
    buf.push_uint16(number)
    return bytes(crypto.encrypt_packet(buf.data, payload.ljust(20, b"\0"), number))


def initial(
    payload: bytes, number: int = 0, token: bytes = bytes(96), odcid: bytes = ODCID, scid: bytes = bytes(8)
) -> bytes:
    """An Initial of a dialler with any frames: its keys follow from the connection id, which is in it."""
    pair = CryptoPair()
    pair.setup_initial(cid=odcid, is_client=True, version=1)
    payload = payload[:1080].ljust(1080, b"\0")
    head = b"\xc1\0\0\0\1\x08" + odcid + b"\x08" + scid
    head += (0x4000 | len(token)).to_bytes(2, "big") + token
    head += (0x4000 | (len(payload) + 2 + 16)).to_bytes(2, "big") + number.to_bytes(2, "big")
    return bytes(pair.encrypt_packet(head, payload, number))


class Live:
    """A connection whose dialler's packets are made by hand; a new one when the listener has ended it."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._number = 0
        self._dialler: AioquicEngine | None = None
        self._listener: Engine | None = None

    def __call__(self, frames: bytes) -> None:
        """Send one packet with these frames, and let the listener do all that it wants to."""
        if self._dialler is None or self._listener is None or self._number >= LAST_NUMBER:
            self._begin()
        dialler, listener = self._dialler, self._listener
        assert dialler is not None
        assert listener is not None
        self._number += 1
        listener.receive([protected(dialler, frames[:1100], self._number)], 1.0)
        listener.transmit(1.0)
        if any(type(event).__name__ == "Terminated" for event in listener.events()):
            listener.release()
            self._dialler = self._listener = None

    def _begin(self) -> None:
        dialler = pick_engine("aioquic").dial(ONE, OTHER.id, lambda odcid: bytes(96), 30.0, 0.0)
        listener = pick_engine(self._engine).accept(OTHER, dialler.odcid, 30.0, 0.0)
        assert isinstance(dialler, AioquicEngine)
        shuttle(dialler, listener)
        assert listener.handshake_confirmed
        self._dialler, self._listener, self._number = dialler, listener, 100


class FirstFlight:
    """A listener that takes an Initial with any frames, behind a valid knock."""

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def __call__(self, frames: bytes) -> None:
        """Send it twice, as two packets, and let the listener answer."""
        listener = pick_engine(self._engine).accept(OTHER, ODCID, 30.0, 0.0)
        sizes = 0
        for number in range(2):
            listener.receive([initial(frames, number)], 1.0)
            sizes += sum(map(len, listener.transmit(1.0)))
        listener.events()
        listener.release()
        assert sizes <= 3 * 2 * 1300, "more than three times what came"
