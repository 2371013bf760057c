"""The hybrid key exchange between both engines, which have it from two libraries: negotiated, whole, or refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from meshnode.identity.keys import Identity
from meshnode.quic.engines import aioquic_tls, pick_engine
from meshnode.quic.engines.key_exchange import DIALLERS, HYBRID, KEM_KEY, LISTENERS, MODULUS, X25519, chosen, is_valid
from meshnode.quic.packets import initial_token, is_v1_initial
from meshnode.quic.seam import NO_GROUP, Engine, HandshakeDone, Terminated
from tests.engines import INSTALLED, every_engine
from tests.fuzz.packets import initial
from tests.interop.test_engines import Pair, every_pair

ONE, OTHER = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
KNOCK = bytes(range(96))
SETTINGS = ("on", "off", "required")
HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


class Wire:
    """Two ends and what they sent; ``pass_on`` may change what the dialler's first flight is."""

    def __init__(self, pair: Pair, here: str = "on", there: str = "on") -> None:
        self.dialler: Engine = pick_engine(pair[0], here).dial(ONE, OTHER.id, lambda _: KNOCK, 30.0, 0.0)
        self.listener: Engine = pick_engine(pair[1], there).accept(OTHER, self.dialler.odcid, 30.0, 0.0)
        self.events: dict[Engine, list[object]] = {self.dialler: [], self.listener: []}
        self.sent: dict[Engine, list[bytes]] = {self.dialler: [], self.listener: []}
        self.now = 0.0

    def flight(self) -> list[bytes]:
        """The dialler's first."""
        return self.step(self.dialler)

    def step(self, source: Engine) -> list[bytes]:
        at = source.next_timer()
        if at is not None and at <= self.now:
            source.on_timer(self.now)
        datagrams = source.transmit(self.now)
        self.sent[source] += datagrams
        for engine in self.events:
            self.events[engine] += engine.events()
        return datagrams

    def give(self, target: Engine, datagrams: list[bytes]) -> None:
        for data in datagrams:
            target.receive([data], self.now)

    def run(self, seconds: float = 0.5) -> None:
        end = self.now + seconds
        while self.now < end:
            self.give(self.listener, self.step(self.dialler))
            self.give(self.dialler, self.step(self.listener))
            self.now += 0.01

    def group(self, engine: Engine) -> str:
        """What was negotiated, "" while the handshake is not done."""
        return next((event.group for event in self.events[engine] if isinstance(event, HandshakeDone)), "")

    def is_done(self, engine: Engine) -> bool:
        return bool(self.group(engine))

    def ended(self, engine: Engine) -> list[str]:
        return [event.reason for event in self.events[engine] if isinstance(event, Terminated)]


@every_pair
@pytest.mark.parametrize(("here", "there"), list(itertools.product(SETTINGS, SETTINGS)))
def test_the_best_group_that_both_accept_is_negotiated_else_none(pair: Pair, here: str, there: str) -> None:
    wire = Wire(pair, here, there)
    wire.run()
    if {here, there} == {"off", "required"}:
        assert not wire.is_done(wire.dialler)
        assert wire.ended(wire.dialler) == wire.ended(wire.listener) == [NO_GROUP]
        return
    expected = "X25519" if "off" in (here, there) else "X25519MLKEM768"
    assert wire.group(wire.dialler) == wire.group(wire.listener) == expected
    assert wire.dialler.handshake_confirmed
    assert wire.dialler.peer_certificate_key == bytes(OTHER.id)


@every_pair
@pytest.mark.parametrize("setting", ["on", "off"])
def test_the_two_ends_of_a_connection_have_a_value_of_its_secret_that_no_other_has(pair: Pair, setting: str) -> None:
    found = set()
    for _ in range(3):
        wire = Wire(pair, setting, setting)
        wire.run()
        ends = [
            event.binding for engine in wire.events for event in wire.events[engine] if type(event) is HandshakeDone
        ]
        assert len(ends) == 2
        assert len(set(ends)) == 1
        assert len(ends[0]) == 32
        found.add(ends[0])
    assert len(found) == 3


@every_pair
def test_the_hybrid_costs_no_round_trip_and_asks_nothing_again(pair: Pair) -> None:
    rounds = {}
    for setting in ("off", "on"):
        wire = Wire(pair, setting, setting)
        count = 0
        while not wire.is_done(wire.dialler):
            wire.give(wire.listener, wire.step(wire.dialler))
            wire.give(wire.dialler, wire.step(wire.listener))
            wire.dialler.transmit(wire.now)
            wire.step(wire.dialler)
            count += 1
            assert count < 9
        rounds[setting] = count
        assert not any(HELLO_RETRY in data for data in opened(wire.sent[wire.listener], wire.dialler.odcid, False))
    assert rounds == {"off": 1, "on": 1}


@every_pair
def test_every_datagram_of_the_first_flight_bears_the_knock_also_when_it_is_repeated(pair: Pair) -> None:
    wire = Wire(pair)
    found = wire.flight()
    assert len(found) == 2
    for _ in range(3):
        wire.now = wire.dialler.next_timer() or 0.0
        found += wire.flight()
    assert len(found) == 8
    for data in found:
        assert is_v1_initial(data)
        assert initial_token(data) == KNOCK


@every_pair
def test_a_flight_that_comes_the_wrong_way_round_is_as_good(pair: Pair) -> None:
    wire = Wire(pair)
    wire.give(wire.listener, wire.flight()[::-1])
    wire.give(wire.dialler, wire.step(wire.listener))
    wire.run()
    assert wire.group(wire.dialler) == wire.group(wire.listener) == "X25519MLKEM768"


@every_pair
@pytest.mark.parametrize("first", [0, 1])
def test_half_of_a_flight_brings_at_most_three_times_its_size_and_the_rest_completes_it(pair: Pair, first: int) -> None:
    wire = Wire(pair)
    flight = wire.flight()
    wire.give(wire.listener, [flight[first]])
    for _ in range(40):
        wire.step(wire.listener)
        wire.now += 0.1
    assert sum(map(len, wire.sent[wire.listener])) <= 3 * len(flight[first])
    wire.give(wire.listener, [flight[1 - first]])
    wire.run(1.0)
    assert wire.group(wire.listener) == "X25519MLKEM768"
    assert wire.is_done(wire.listener)


# ---- an attacker on the path: Initial keys follow from what is in the clear


def opened(datagrams: list[bytes], odcid: bytes, from_dialler: bool) -> list[bytes]:
    """The plain text of Initials, which anyone on the path can read."""
    pair = CryptoPair()
    pair.setup_initial(cid=odcid, is_client=not from_dialler, version=1)
    found = []
    for data in datagrams:
        if data[0] & 0xF0 != 0xC0:
            continue
        at = 6 + data[5]
        at += 1 + data[at]
        token = data[at] if data[at] < 64 else int.from_bytes(data[at : at + 2], "big") & 0x3FFF
        at += token + (1 if data[at] < 64 else 2)
        length = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
        found.append(pair.decrypt_packet(data[: at + 2 + length], at + 2, 0)[1])
    return found


def hello_in(plain: list[bytes]) -> bytes:
    """The ClientHello in the CRYPTO frames of a flight."""
    pieces: dict[int, bytes] = {}
    for data in plain:
        buf = Buffer(data=data)
        while not buf.eof():
            if (kind := buf.pull_uint_var()) == 6:
                at, size = buf.pull_uint_var(), buf.pull_uint_var()
                pieces[at] = buf.pull_bytes(size)
            else:
                assert kind in (0, 1), kind
    return b"".join(pieces[at] for at in sorted(pieces))


def without_hybrid(hello: bytes) -> bytes:
    """The ClientHello as a node sends it that has X25519 alone."""
    parsed = tls.pull_client_hello(Buffer(data=hello))
    assert parsed.key_share is not None
    assert [group for group, _ in parsed.key_share] == [HYBRID, X25519]
    entry = HYBRID.to_bytes(2, "big") + DIALLERS[HYBRID].to_bytes(2, "big") + parsed.key_share[0][1]
    at = hello.index(entry)
    stripped = hello[:at] + hello[at + len(entry) :]
    for place, size in ((1, 3), (at - 2, 2), (at - 4, 2), (extensions_at(hello), 2)):
        length = int.from_bytes(stripped[place : place + size], "big") - len(entry)
        stripped = stripped[:place] + length.to_bytes(size, "big") + stripped[place + size :]
    assert tls.pull_client_hello(Buffer(data=stripped)).key_share == parsed.key_share[1:]
    return stripped


def extensions_at(hello: bytes) -> int:
    """Where the length of the extensions stands."""
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    return at + 1 + hello[at]


@every_pair
def test_an_attacker_that_strips_the_hybrid_share_ends_the_handshake_and_gets_no_weaker_one(pair: Pair) -> None:
    for change, completes in ((without_hybrid, False), (bytes, True)):
        wire = Wire(pair)
        flight = wire.flight()
        hello = change(hello_in(opened(flight, wire.dialler.odcid, True)))
        forged = initial_of(flight[0], wire.dialler.odcid, hello)
        wire.give(wire.listener, forged)
        sent = wire.step(wire.listener)
        assert sum(map(len, sent)) > 900, "the listener has answered with its certificate"
        wire.give(wire.dialler, sent)
        for _ in range(30):
            wire.give(wire.listener, wire.step(wire.dialler))
            wire.give(wire.dialler, wire.step(wire.listener))
            wire.now += 0.02
        assert wire.is_done(wire.dialler) is wire.is_done(wire.listener) is completes


def initial_of(model: bytes, odcid: bytes, hello: bytes) -> list[bytes]:
    """Initials like ``model``, with the dialler's ids and this ClientHello."""
    at = 6 + model[5]
    scid = model[at + 1 : at + 1 + model[at]]
    found = []
    for number, start in enumerate(range(0, len(hello), 900)):
        piece = hello[start : start + 900]
        frame = b"\x06" + (0x4000 | start).to_bytes(2, "big") + (0x4000 | len(piece)).to_bytes(2, "big") + piece
        found.append(initial(frame, number, KNOCK, odcid=odcid, scid=scid))
    return found


# ---- shares that are not what they should be

PUBLIC = MLKEM768PrivateKey.from_seed_bytes(bytes(64)).public_key().public_bytes_raw()


def _with_coefficient(at: int, value: int) -> bytes:
    number = int.from_bytes(PUBLIC[:1152], "little")
    number = number & ~(0xFFF << 12 * at) | value << 12 * at
    return number.to_bytes(1152, "little") + PUBLIC[1152:]


@pytest.mark.parametrize("at", [0, 1, 2, 383, 766, 767])
@pytest.mark.parametrize("value", [0, MODULUS - 1, MODULUS, 4095])
def test_an_encapsulation_key_is_checked_as_the_library_does(at: int, value: int) -> None:
    data = _with_coefficient(at, value)
    try:
        MLKEM768PublicKey.from_public_bytes(data).encapsulate()
        holds = True
    except ValueError:
        holds = False
    assert is_valid((HYBRID, data + bytes(32)), DIALLERS) is holds is (value < MODULUS)


def test_a_share_of_another_size_is_none() -> None:
    rng = random.Random(1)
    good = PUBLIC + rng.randbytes(32)
    assert chosen((HYBRID,), [(HYBRID, good)])
    for bad in (b"", good[:-1], good + b"x", good[:KEM_KEY], bytes(10)):
        assert chosen((HYBRID, X25519), [(HYBRID, bad), (X25519, bytes(32))]) is None
    assert chosen((HYBRID, X25519), [(X25519, bytes(32)), (HYBRID, good)]) == (HYBRID, good), "whatever comes first"
    assert not is_valid((HYBRID, bytes(1119)), LISTENERS)
    assert chosen((X25519,), [(HYBRID, good), (0x17, bytes(65))]) is None
    assert chosen((X25519,), None) is None


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "nothing": lambda share: b"",
    "short": lambda share: share[:-1],
    "long": lambda share: share + b"x",
    "all ones": lambda share: b"\xff" * len(share),
    "a point of small order": lambda share: share[:-32] + bytes(32),
}


@every_engine
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("hostile_dials", [True, False])
def test_a_damaged_share_ends_the_handshake_and_nothing_else(
    engine: str,
    damage: str,
    hostile_dials: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    encoded = aioquic_tls.Hybrid.encoded

    def damaged(self: aioquic_tls.Hybrid) -> bytes:
        share = encoded(self)
        return DAMAGES[damage](share) if bool(self._ciphertext) is not hostile_dials else share

    monkeypatch.setattr(aioquic_tls.Hybrid, "encoded", damaged)
    pair = ("aioquic", engine) if hostile_dials else (engine, "aioquic")
    wire = Wire(pair)
    victim = wire.listener if hostile_dials else wire.dialler
    wire.run()
    assert not wire.is_done(victim)
    if hostile_dials or damage != "all ones":  # any ciphertext of the right size decapsulates, to another secret
        assert len(wire.ended(victim)) == 1
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both engines")
def test_the_two_libraries_make_the_same_secret() -> None:
    from qh3._hazmat import X25519ML768KeyExchange

    for _ in range(8):
        ours, theirs = aioquic_tls.Hybrid(), X25519ML768KeyExchange()
        share = ours.encoded()
        secret = theirs.exchange(share)
        assert ours.exchange(aioquic_tls.PeerShare(theirs.shared_ciphertext())) == secret
        assert len(share) == DIALLERS[HYBRID]
        ours, theirs = aioquic_tls.Hybrid(), X25519ML768KeyExchange()
        secret = ours.exchange(aioquic_tls.PeerShare(theirs.public_key()))
        assert len(ours.encoded()) == LISTENERS[HYBRID]
        assert theirs.exchange(ours.encoded()) == secret
        assert len(secret) == 64
