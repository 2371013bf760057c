"""Two connections by hand, without stack and paths: what their engines and they prove, refuse and survive."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest

from meshnode.errors import MeshError, PeerIdentityError
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import CloseCode, Hello, LocalEnd, make_hello
from meshnode.quic.packets import acceptable
from meshnode.quic.seam import Engine, HandshakeDone
from meshnode.quic.stream import Stream
from tests.interop.test_engines import Pair, every_pair


class Side:
    """One end: the connection's events, as far as these tests care."""

    def __init__(self, boot: bytes) -> None:
        self.boot = boot
        self.connection: Connection
        self.hello: Hello | None = None
        self.closed: MeshError | None = None
        self.cids: list[bytes] = []

    def begin(self, engine: Engine, me: Identity, peer: Identity, *, dialler: bool) -> None:
        local = LocalEnd(me, self.boot, b"")
        self.connection = Connection(engine, local, peer.id, self, dialler=dialler, now=0.0)

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        self.hello = hello
        connection.admit()

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        self.closed = error

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        self.cids.append(cid)

    def on_ready(self, connection: Connection) -> None: ...
    def on_record(self, connection: Connection, encoded: bytes) -> None: ...
    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def count(self, counter: str, /) -> None: ...
    def on_dirty(self, connection: Connection) -> None: ...


def _by_hand(pair: Pair, dialled: Identity, listener: Identity) -> tuple[Side, Side, Iterator[bytes]]:
    """A dialler that wants ``dialled`` and a listener that is ``listener``; iterate to let datagrams pass."""
    me = Identity(bytes(31) + b"\1")
    here, there = Side(b"dialler."), Side(b"listener")
    dialling = pick_engine(pair[0]).dial(me, dialled.id, lambda odcid: b"knock" + odcid, 30.0, 0.0)
    accepting = pick_engine(pair[1]).accept(listener, dialling.odcid, 30.0, 0.0)
    here.begin(dialling, me, dialled, dialler=True)
    there.begin(accepting, listener, me, dialler=False)

    def pass_on() -> Iterator[bytes]:
        now = 0.0
        while now < 10.0:
            for source, target in ((here, there), (there, here)):
                for datagram in source.connection.transmit(now):
                    yield datagram
                    target.connection.receive([datagram], now)
                at = source.connection.engine.next_timer()
                if at is not None and at <= now:
                    source.connection.on_timer(now)
            now += 0.005

    return here, there, pass_on()


LISTENER = Identity(bytes(31) + b"\2")
URANDOM = os.urandom


@every_pair
def test_both_keys_are_proven_by_hello_and_welcome(pair: Pair) -> None:
    here, there, wire = _by_hand(pair, LISTENER, LISTENER)
    for _ in wire:
        if here.connection.state is there.connection.state is State.READY:
            break
    assert there.hello is not None
    assert here.connection.peer_boot == b"listener"
    assert here.connection.engine.peer_certificate_key == bytes(LISTENER.id)
    for _ in itertools.islice(wire, 20):
        pass
    assert here.connection.engine.handshake_confirmed
    ids = [*here.cids, *there.cids, here.connection.engine.host_cid, there.connection.engine.host_cid]
    assert not [cid for cid in ids if cid[:2] in (b"1:", b"2:")]


@every_pair
def test_a_listener_with_another_key_is_a_peer_identity_error_and_hears_no_hello(pair: Pair) -> None:
    here, there, wire = _by_hand(pair, LISTENER, Identity(bytes(31) + b"\3"))
    for _ in wire:
        if here.closed is not None:
            break
    assert isinstance(here.closed, PeerIdentityError)
    for _ in itertools.islice(wire, 20):
        pass
    assert there.hello is None


@every_pair
@pytest.mark.parametrize("closer", ["dialler", "listener"])
def test_the_reason_of_a_close_arrives(pair: Pair, closer: str) -> None:
    here, there, wire = _by_hand(pair, LISTENER, LISTENER)
    for _ in wire:
        if here.connection.state is there.connection.state is State.READY:
            break
    closing, other = (here, there) if closer == "dialler" else (there, here)
    closing.connection.close(CloseCode.SHUTDOWN, "out of coffee")
    for _ in wire:
        if other.closed is not None:
            break
    assert "out of coffee" in str(other.closed)


@every_pair
def test_junk_on_a_live_connection_raises_nothing_and_changes_nothing(pair: Pair) -> None:
    here, there, wire = _by_hand(pair, LISTENER, LISTENER)
    for _ in wire:
        if here.connection.state is there.connection.state is State.READY:
            break
    rng = random.Random(9)
    for side in (here, there):
        cid = side.connection.engine.host_cid
        for size in (1, 2, 9, 20, 30, 60, 1200, 1500):
            assert not side.connection.receive([bytes([0x40 | rng.randrange(64)]) + cid + rng.randbytes(size)], 1.0)
            side.connection.receive([b"\xc3\0\0\0\1\x08" + cid + rng.randbytes(size)], 1.0)
        assert side.connection.state is State.READY


@every_pair
def test_a_handshake_beside_which_tampered_datagrams_arrive_completes(pair: Pair) -> None:
    rng = random.Random(11)
    for _ in range(40):
        here, there, _ = _by_hand(pair, LISTENER, LISTENER)
        for step in range(12):
            for source, target in ((here, there), (there, here)):
                now = step * 0.01
                for datagram in source.connection.transmit(now):
                    bad = bytearray(datagram)
                    for _ in range(rng.choice((0, 1, 1, 3))):
                        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
                    bad = bad[: rng.choice((len(bad), rng.randrange(1, len(bad))))]
                    if bad != datagram and acceptable(bytes(bad)):  # as the driver does
                        target.connection.receive([bytes(bad)], now)
                    target.connection.receive([datagram], now)
        assert here.connection.state is there.connection.state is State.READY


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
def test_a_stolen_key_of_a_listener_does_not_carry_on_the_hello_of_its_dialler(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thief stands between: TLS with both, the same connection id, and the dialler's own Hello passed on."""
    pytest.importorskip(engine)
    for is_passed_on in (False, True):
        victim = Identity(bytes(31) + b"\1")
        dialler = pick_engine("aioquic").dial(victim, LISTENER.id, lambda _: bytes(96), 30.0, 0.0)
        thief = pick_engine(engine).accept(LISTENER, dialler.odcid, 30.0, 0.0)  # with the stolen key
        hello = _said_by(victim, dialler, thief)
        monkeypatch.setattr(
            "aioquic.quic.connection.os.urandom",
            lambda n, odcid=dialler.odcid: odcid if n == 8 else URANDOM(n),
        )
        onward = pick_engine("aioquic").dial(victim, LISTENER.id, lambda _: bytes(96), 30.0, 0.0)
        monkeypatch.undo()
        assert onward.odcid == dialler.odcid
        there = Side(b"listener")
        there.begin(pick_engine(engine).accept(LISTENER, onward.odcid, 30.0, 0.0), LISTENER, victim, dialler=False)
        binding = _shaken(onward, there.connection)
        onward.open_stream()
        own = make_hello(victim, LISTENER.id, onward.odcid, bytes(LISTENER.id), binding, boot=bytes(8), record=b"")
        onward.send(0, hello if is_passed_on else own)
        _shaken(onward, there.connection)
        assert (there.hello is None) is is_passed_on
        assert (there.connection.state is State.CLOSED) is is_passed_on


def _said_by(me: Identity, dialler: Engine, listener: Engine) -> bytes:
    """The Hello that a dialler makes for a connection."""
    binding = _shaken(dialler, listener)
    return make_hello(me, LISTENER.id, dialler.odcid, bytes(LISTENER.id), binding, boot=bytes(8), record=b"")


def _shaken(dialler: Engine, listener: Engine | Connection) -> bytes:
    """Let both talk for a while, and return the binding that the dialler has."""
    found = b""
    for step in range(12):
        for data in dialler.transmit(step * 0.01):
            listener.receive([data], step * 0.01)
        for data in listener.transmit(step * 0.01):
            dialler.receive([data], step * 0.01)
        for event in dialler.events():
            found = event.binding if isinstance(event, HandshakeDone) else found
    return found
