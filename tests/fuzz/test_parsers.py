"""Every parser that a stranger or a member can reach: whatever the bytes, no exception, no answer, a named drop."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.base.wire import WireError, decode, encode
from meshnode.discovery.dht import messages
from meshnode.discovery.lan import decode_text, encode_text, open_announcement
from meshnode.errors import RecordError
from meshnode.identity.keys import Identity
from meshnode.identity.record import DOMAIN, Endpoint, open_record, sign_record
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic import packets
from meshnode.quic.engines import pick_engine
from meshnode.quic.engines.aioquic import AioquicEngine
from meshnode.quic.hello import FrameReader, frame, make_hello, make_welcome, open_hello, open_welcome
from meshnode.quic.preface import encode_header
from meshnode.quic.seam import Engine
from meshnode.quic.stream import Stream
from meshnode.sim.world import SimNode, World
from meshnode.stack import probe
from meshnode.stack.stack import Stack
from tests.engines import INSTALLED
from tests.fuzz.packets import protected, shuttle

ONE, OTHER = Identity(bytes(32)), Identity(bytes(range(32)))
WALL = 1_700_000_000.0
SOURCE = Addr("198.51.100.9", 999)
RNG = random.Random(5)
fuzz = settings(max_examples=300, derandomize=True)


def mutate(data: bytes, seed: int) -> bytes:
    """Change, cut out, double or put in a few bytes; the same change for the same seed."""
    rng, found = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(found) + 1), rng.randrange(40)
        match rng.randrange(6):
            case 0 | 1 if at < len(found):
                found[at] ^= rng.randint(1, 255)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case 4:
                found[at:at] = rng.randbytes(size)
            case _:
                del found[max(at, 1) :]
    return bytes(found)


def mutated(*valid: bytes) -> st.SearchStrategy[bytes]:
    """One of the valid messages, damaged."""
    return st.builds(mutate, st.sampled_from(valid), st.integers(0, 2**32))


def any_of(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Junk, or mutations of the valid ones."""
    return st.binary(max_size=1500) | mutated(*valid)


def an_initial() -> bytes:
    """A full-size Initial with a knock, as a dialler of the simulator's mesh would send it."""
    engine = pick_engine("auto").dial(ONE, OTHER.id, lambda odcid: RNG.randbytes(96), 30.0, 0.0)
    return engine.transmit(0.0)[0]


INITIAL = an_initial()
SHORT = b"\x41" + bytes(60)


# ---- QUIC headers


@given(any_of(INITIAL, SHORT, INITIAL[:9]))
@fuzz
def test_reading_a_quic_header_never_raises(data: bytes) -> None:
    cid = packets.dcid_of(data)
    assert cid is None or len(cid) <= packets.MAX_CID_LENGTH
    packets.acceptable(data)
    packets.is_v1_initial(data)
    token = packets.initial_token(data)
    assert token is None or token in data


# ---- canonical CBOR and what is made of it

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=400) | VALUES.map(lambda value: encode(value)).flatmap(lambda data: mutated(data)))
@fuzz
def test_cbor_decodes_to_what_encodes_to_the_same_bytes_or_is_a_wire_error(data: bytes) -> None:
    try:
        value = decode(data, 2000)
    except WireError:
        return
    assert encode(value) == data


BOMBS = [
    b"\x9b" + b"\xff" * 8,
    b"\xbb" + b"\x7f" + b"\xff" * 7,
    b"\x5b" + b"\xff" * 8,
    b"\x7b" + b"\x00\x00\x00\xff" + b"\xff" * 4,
    b"\x81" * 1000 + b"\x00",
    b"\xd8\x1c" * 400 + b"\x00",
    b"\x9f" * 500,
    b"\xc2\x59\x03\xe8" + b"\xff" * 1000,
    b"\xfb\x7f\xf8" + bytes(6),
    b"\xa1\x80\x00",
    b"\xa2\x00\x00\x00\x00",
    b"\xd8\x1d\x00",
    b"\x61\xff",
    b"\xc0\x61a",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda b: b[:4].hex())
def test_cbor_bombs_are_wire_errors(bomb: bytes) -> None:
    with pytest.raises(WireError):
        decode(bomb, 2000)


RECORD = sign_record(
    ONE,
    seq=1,
    issued_ms=int(WALL * 1000),
    ttl=600,
    endpoints=(Endpoint(Addr("192.0.2.1", 1)), Endpoint(Addr("2001:db8::1", 2))),
    relays=(OTHER.id,),
    capabilities=("seed",),
).encoded


@given(any_of(RECORD))
@fuzz
def test_a_damaged_record_is_a_record_error(data: bytes) -> None:
    if data == RECORD:
        return
    with pytest.raises(RecordError):
        open_record(data, WALL)


FIELD = VALUES | st.just(bytes(ONE.id)) | st.lists(st.tuples(VALUES, VALUES).map(list), max_size=3)


@given(st.lists(FIELD, min_size=8, max_size=8), st.integers(0, 255))
@fuzz
def test_a_signed_record_of_the_wrong_types_is_a_record_error(fields: list[object], keep: int) -> None:
    good = [1, bytes(ONE.id), 1, int(WALL * 1000), 600, [[0, b"\x01\x02\x03\x04\x00\x01"]], [], []]
    mixed = [good[i] if keep >> i & 1 else field for i, field in enumerate(fields)]
    body = encode(mixed)
    try:
        record = open_record(ONE.sign(DOMAIN + body) + body, WALL)
    except RecordError:
        return
    assert record.id == ONE.id, "what opens is well formed"


# ---- sealing


class Still:
    """A clock that stands."""

    def monotonic(self) -> float:
        return 1.0

    def wall(self) -> float:
        return WALL


def sealer(identity: Identity) -> Sealer:
    """A member of the mesh ``fuzz``."""
    return Sealer(identity, MeshKey.from_text("fuzz"), Still(), RNG.randbytes, born=WALL - 1)


ALICE, BOB = sealer(ONE), sealer(OTHER)
SEALED = [ALICE.seal(OTHER.id, bytes(n)) for n in (0, 1, 32, 900)]
KNOCK = ALICE.knock(OTHER.id, b"12345678")
HINT = ALICE.encrypt_hint(RECORD)


@given(any_of(*SEALED))
@fuzz
def test_a_damaged_seal_is_dropped_and_counted(data: bytes) -> None:
    before = sum(BOB.drops.values())
    if data not in SEALED:
        assert BOB.unseal(data) is None
        assert sum(BOB.drops.values()) == before + 1


@given(any_of(KNOCK), st.binary(max_size=20))
@fuzz
def test_a_damaged_knock_or_one_for_another_connection_is_dropped_and_counted(data: bytes, odcid: bytes) -> None:
    before = sum(BOB.drops.values())
    if odcid != b"12345678":
        assert BOB.check_knock(data, odcid) is None
        assert BOB.check_knock(KNOCK, odcid) is None
        assert sum(BOB.drops.values()) == before + 2


@given(any_of(HINT))
@fuzz
def test_a_damaged_hint_is_nobodys(data: bytes) -> None:
    assert data == HINT or BOB.decrypt_hint(data) is None


@given(st.binary(max_size=64))
@fuzz
def test_a_member_that_names_any_32_bytes_as_its_key_is_dropped(raw: bytes) -> None:
    """Any holder of the mesh key opens the box; the mac under a key that it lacks is what stops it."""
    from nacl.bindings import crypto_secretbox

    box = MeshKey.from_text("fuzz").derive(b"mesh-receiver", bytes(OTHER.id))
    nonce = RNG.randbytes(24)
    plain = raw.ljust(32, b"\0")[:32] + int(WALL * 1e6).to_bytes(8, "big") + bytes(16) + raw
    assert BOB.unseal(b"\x01" + nonce + crypto_secretbox(plain, nonce, box)) is None
    assert BOB.unseal(b"\x01" + nonce + crypto_secretbox(raw, nonce, box)) is None


# ---- control frames and stream headers

HELLO = make_hello(ONE, OTHER.id, b"12345678", bytes(OTHER.id), bytes(32), boot=bytes(8), record=RECORD)
WELCOME = make_welcome(bytes(8), RECORD)


@given(any_of(HELLO, WELCOME, HELLO + frame(3, RECORD)), st.integers(1, 700))  # type: ignore[arg-type]
@fuzz
def test_control_bytes_cut_anywhere_are_frames_or_wire_errors(data: bytes, step: int) -> None:
    reader = FrameReader()
    try:
        for at in range(0, len(data), step):
            for fields in reader.feed(data[at : at + step]):
                for opener in (lambda f: open_hello(f, OTHER.id, ONE.id, b"12345678", bytes(32)), open_welcome):
                    try:
                        opener(fields)
                    except WireError:
                        continue
    except WireError:
        return


class Port:
    """A stream's connection, which takes everything."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *args: 0


@given(st.lists(any_of(encode_header("echo"), encode_header("é" * 100)), max_size=5), st.booleans(), st.booleans())
@fuzz
def test_stream_bytes_are_taken_or_are_a_wire_error(chunks: list[bytes], opener: bool, fin: bool) -> None:
    stream = Stream(Port(), 4, opener=opener)  # type: ignore[arg-type]
    try:
        for chunk in chunks:
            stream.feed(chunk, False)
        stream.feed(b"", fin)
    except WireError:
        return


# ---- sealed bodies: path probes, DHT, mDNS

PING = probe.encode_ping(probe.Ping(3, bytes(8), bytes(8)))
PONG = probe.encode_pong(probe.Pong(1, bytes(8), Addr("2001:db8::1", 4242)))


@given(any_of(PING, PONG))
@fuzz
def test_probes_parse_or_are_none(data: bytes) -> None:
    ping, pong = probe.decode_ping(data), probe.decode_pong(data)
    assert ping is None or len(ping.tx) == len(ping.handle) == 8
    assert pong is None or len(pong.tx) == 8


TX, TOKEN, KEY = b"t" * 8, b"o" * 8, ONE.id.dht_key
CONTACTS = (messages.ContactInfo(ONE.id, Addr("192.0.2.1", 1)), messages.ContactInfo(OTHER.id, Addr("2001:db8::1", 2)))
DHT = [
    messages.encode_message(message)
    for message in (
        messages.Ping(TX),
        messages.Pong(TX, TOKEN),
        messages.Find(TX, KEY),
        messages.Nodes(TX, TOKEN, CONTACTS),
        messages.Get(TX, KEY),
        messages.Value(TX, TOKEN, CONTACTS, RECORD),
        messages.Store(TX, TOKEN, RECORD),
        messages.Stored(TX, messages.Status.OK, TOKEN),
        messages.Watch(TX, TOKEN, KEY, 7, 60),
        messages.Watched(TX, messages.Status.HAVE_NEWER, TOKEN, RECORD),
        messages.Push(TX, RECORD),
        messages.PushAck(TX),
    )
]


@given(any_of(*DHT))
@settings(fuzz, max_examples=600)
def test_a_dht_body_is_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        message = messages.decode_message(data)
    except WireError:
        return
    assert messages.decode_message(messages.encode_message(message)) == message


@given(st.integers(0x10, 0x1B), st.lists(FIELD | st.just(TX), max_size=7))
@fuzz
def test_a_dht_body_of_the_wrong_types_is_a_message_or_a_wire_error(kind: int, fields: list[object]) -> None:
    try:
        messages.decode_message(bytes([kind]) + encode(fields))
    except WireError:
        return


@given(any_of(encode_text(HINT)))
@fuzz
def test_mdns_text_cut_anywhere_is_joined_and_nothing_more(data: bytes) -> None:
    assert len(decode_text(data)) <= len(data)


@given(st.binary(max_size=1300))
@fuzz
def test_an_announcement_that_a_member_sealed_is_opened_or_none(plain: bytes) -> None:
    said = open_announcement(BOB, ALICE.encrypt_hint(plain))
    assert said is None or len(said.record) <= 1000


@given(st.binary(max_size=1300))
@fuzz
def test_mdns_text_carries_any_bytes(data: bytes) -> None:
    assert decode_text(encode_text(data)) == data


# ---- a whole node


class Ear:
    """A node of the simulator, and how many datagrams it has sent since the last question."""

    def __init__(self) -> None:
        self.world = World(1)
        self.node = SimNode(self.world, "10.0.0.1", pick_engine("auto"))
        identity = Identity(self.world.entropy(32))
        self.member = Sealer(
            identity, MeshKey.from_text("sim"), self.world, self.world.entropy, born=self.world.wall() - 1
        )

    @property
    def mesh(self) -> Stack:
        return self.node.mesh

    def counted(self) -> int:
        """All counters that say that something was dropped."""
        return sum(self.mesh.metrics.counters.values()) + sum(self.mesh.context.sealer.drops.values())

    def say(self, data: bytes) -> tuple[int, int]:
        """Hand in a datagram: how many were sent back at once, and how far the counters rose."""
        sent, counted = self.world.sent, self.counted()
        self.mesh.receive([(data, SOURCE)], self.world.now)
        return self.world.sent - sent, self.counted() - counted


EAR = Ear()


@given(any_of(INITIAL, SHORT, INITIAL[:40], *SEALED))
@fuzz
def test_a_strangers_datagram_is_not_answered(data: bytes) -> None:
    sent, _ = EAR.say(data)
    assert sent == 0
    assert not EAR.mesh.sessions


@given(any_of(INITIAL, SHORT, INITIAL[:40], *SEALED))
@fuzz
def test_a_strangers_datagram_is_counted(data: bytes) -> None:
    _, counted = EAR.say(data)
    assert counted > 0


@given(any_of(PING, PONG, *DHT))
@settings(fuzz, max_examples=600)
def test_a_members_junk_is_answered_by_no_more_than_it_brought(data: bytes) -> None:
    ear = Ear()
    sizes: list[int] = []
    ear.node.send = lambda addr, datagrams: sizes.extend(map(len, datagrams)) is None  # type: ignore[method-assign]
    sealed = ear.member.seal(ear.node.id, data)
    ear.mesh.receive([(sealed, SOURCE)], ear.world.now)
    answered = sum(sizes)
    known = probe.encode_ping(probe.Ping(0, bytes(8), bytes(8)))
    assert answered <= len(sealed) + len(ear.member.seal(ear.node.id, known)) + 97, "at most an answer and one probe"


# ---- a live QUIC connection


def pair(victim: str) -> tuple[AioquicEngine, Engine]:
    """A hostile dialler, whose packets can be made by hand, and a listener; the handshake is confirmed."""
    dialler = pick_engine("aioquic").dial(ONE, OTHER.id, lambda odcid: bytes(96), 30.0, 0.0)
    listener = pick_engine(victim).accept(OTHER, dialler.odcid, 30.0, 0.0)
    assert isinstance(dialler, AioquicEngine)
    shuttle(dialler, listener)
    assert listener.handshake_confirmed
    return dialler, listener


@given(st.data(), st.sampled_from(INSTALLED))
@settings(fuzz, max_examples=60)
def test_a_live_connection_shrugs_off_damaged_datagrams(data: st.DataObject, engine: str) -> None:
    dialler, listener = pair(engine)
    stream = dialler.open_stream()
    dialler.send(stream, b"x" * 3000)
    for datagram in dialler.transmit(1.0):
        for damaged in data.draw(st.lists(mutated(datagram), min_size=5, max_size=5)):
            listener.receive([damaged], 1.0)
        listener.receive([datagram], 1.0)
    got = b"".join(e.data for e in listener.events() if hasattr(e, "data"))
    assert got == b"x" * 3000, "what is not authentic changes nothing"


@given(
    st.lists(
        st.binary(min_size=1, max_size=60)
        | st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 0x31), st.binary(max_size=60)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(INSTALLED),
)
@fuzz
def test_a_members_junk_frames_end_at_worst_its_own_connection(frames: list[bytes], engine: str) -> None:
    _, listener = live = pair(engine)
    for number, payload in enumerate(frames, 100):
        listener.receive([protected(live[0], payload, number)], 1.0)
        list(listener.events())
        listener.transmit(1.0)
        list(listener.events())
        at = listener.next_timer()
        if at is not None:
            listener.on_timer(max(1.0, at))
        listener.transmit(1.1)
    listener.close(0, "")
    listener.transmit(1.2)
