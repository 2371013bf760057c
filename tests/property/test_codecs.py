"""What is encoded decodes to the same, has one encoding only, and fits where it must fit."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.address import Addr, canonical_host, is_dialable, pack_addr, parse_addr, unpack_addr, unpack_dialable
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_CONTACTS, DHT_MAX_WATCH_S, MAX_RECORD
from meshnode.base.wire import WireError, decode, encode
from meshnode.discovery.dht import messages
from meshnode.discovery.dht.messages import ContactInfo, decode_message, encode_message
from meshnode.identity.keyfile import parse_seed_text
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointKind, open_record, sign_record
from meshnode.identity.sealing import MeshKey
from meshnode.quic.hello import Frame, FrameReader, frame
from meshnode.quic.preface import encode_header
from meshnode.quic.stream import Stream
from meshnode.stack import probe

WALL = 1_700_000_000.0
ME = Identity(bytes(32))
quick = settings(max_examples=200, derandomize=True)

ips = st.ip_addresses().map(str).map(canonical_host)
any_addr = st.builds(Addr, ips, st.integers(0, 65535))
dialable = any_addr.filter(is_dialable)
ids = st.binary(min_size=32, max_size=32).map(NodeId)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=30) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 99) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


# ---- CBOR


@given(values)
@quick
def test_cbor_round_trips(value: object) -> None:
    assert decode(encode(value), 10_000) == value


@given(st.dictionaries(st.integers(0, 1000) | st.text(max_size=6), st.integers(), max_size=6), st.randoms())
@quick
def test_a_map_has_one_encoding_in_whatever_order_it_was_filled(value: dict[object, int], rng) -> None:  # type: ignore[no-untyped-def]
    keys = list(value)
    rng.shuffle(keys)
    assert encode({key: value[key] for key in keys}) == encode(value)


@given(values, st.binary(min_size=1, max_size=3))
@quick
def test_nothing_may_follow_a_value(value: object, rest: bytes) -> None:
    try:
        decode(encode(value) + rest, 10_000)
    except WireError:
        return
    raise AssertionError("bytes behind a value were ignored")


@given(values)
@quick
def test_a_value_that_is_longer_than_allowed_is_refused(value: object) -> None:
    data = encode(value)
    assert decode(data, len(data)) == value
    try:
        decode(data, len(data) - 1)
    except WireError:
        return
    raise AssertionError("the bound was not kept")


# ---- ids, keys and addresses


@given(ids)
@quick
def test_an_id_round_trips_as_text_in_any_case_and_with_its_domain(node_id: NodeId) -> None:
    for text in (str(node_id), str(node_id).upper(), f" {node_id}.mesh "):
        assert NodeId.parse(text) == node_id
    assert node_id.overlay in ipaddress.ip_network("fd00::/8")


@given(st.binary(min_size=32, max_size=32))
@quick
def test_keys_round_trip_as_text(raw: bytes) -> None:
    assert MeshKey.from_text(str(MeshKey(raw))).bytes == raw
    assert parse_seed_text(raw.hex()).seed == raw


@given(any_addr)
@quick
def test_an_address_round_trips_as_text_and_as_bytes(addr: Addr) -> None:
    assert parse_addr(str(addr)) == addr
    assert unpack_addr(pack_addr(addr)) == addr


@given(any_addr)
@quick
def test_an_ipv4_address_has_one_form_however_it_is_wrapped(addr: Addr) -> None:
    if ":" not in addr.host:
        assert parse_addr(f"[::ffff:{addr.host}]:{addr.port}") == addr
        assert unpack_addr(ipaddress.ip_address(f"::ffff:{addr.host}").packed + addr.port.to_bytes(2, "big")) == addr


@given(st.binary(min_size=6, max_size=6) | st.binary(min_size=18, max_size=18) | any_addr.map(pack_addr))
@quick
def test_bytes_of_an_address_that_cannot_be_dialled_are_refused_whatever_their_form(data: bytes) -> None:
    for packed in (data, bytes(10) + b"\xff\xff" + data) if len(data) == 6 else (data,):
        addr = unpack_addr(packed)
        if is_dialable(addr):
            assert unpack_dialable(packed) == addr
        else:
            with pytest.raises(ValueError):
                unpack_dialable(packed)


@given(st.text(max_size=30) | st.from_regex(r"[\[\]0-9a-f:.%]{1,30}:[0-9²]{1,6}", fullmatch=True))
@quick
def test_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        addr = parse_addr(text)
    except ValueError:
        return
    assert parse_addr(str(addr)) == addr


# ---- records


@given(
    st.lists(st.builds(Endpoint, dialable, st.sampled_from(EndpointKind)), max_size=40),
    st.lists(ids, max_size=4),
    st.lists(st.text(alphabet="abcäö", max_size=24), max_size=8),
    st.integers(0, int(WALL * 1000)),
    st.integers(1, 86_400),
)
@quick
def test_a_record_round_trips_and_fits(
    endpoints: list[Endpoint], relays: list[NodeId], capabilities: list[str], seq: int, ttl: int
) -> None:
    signed = sign_record(
        ME,
        seq=seq,
        issued_ms=int(WALL * 1000),
        ttl=ttl,
        endpoints=tuple(endpoints),
        relays=tuple(relays),
        capabilities=tuple(capabilities),
    )
    assert len(signed.encoded) <= MAX_RECORD
    assert open_record(signed.encoded, WALL, expected=ME.id) == signed
    kept = list(dict.fromkeys(endpoints))
    assert list(signed.endpoints) == kept[: len(signed.endpoints)], "the last are left out, not the first"


# ---- probes and DHT messages

tx8 = st.binary(min_size=8, max_size=8)


@given(st.integers(0, 255), tx8, tx8, st.integers(0, 1400))
@quick
def test_a_ping_round_trips_at_any_size(flags: int, tx: bytes, handle: bytes, size: int) -> None:
    ping = probe.Ping(flags, tx, handle)
    body = probe.encode_ping(ping, size)
    assert probe.decode_ping(body) == ping
    assert len(body) == max(size, probe.MIN_PING)


@given(st.integers(0, 255), tx8, st.none() | any_addr)
@quick
def test_a_pong_round_trips_and_is_never_longer_than_the_shortest_ping(
    flags: int, tx: bytes, seen: Addr | None
) -> None:
    pong = probe.Pong(flags, tx, seen)
    body = probe.encode_pong(pong, probe.MIN_PING if flags & probe.EXPANDED else 0)
    assert probe.decode_pong(body) == pong
    assert len(body) <= probe.MIN_PING


tokens = st.just(b"") | tx8
keys = st.binary(min_size=20, max_size=20)
contacts = st.lists(st.builds(ContactInfo, ids, dialable), max_size=DHT_MAX_CONTACTS).map(tuple)
records = st.binary(max_size=400)
status = st.sampled_from(messages.Status)
dht = st.one_of(
    st.builds(messages.Ping, tx8),
    st.builds(messages.Pong, tx8, tokens),
    st.builds(messages.Find, tx8, keys),
    st.builds(messages.Nodes, tx8, tokens, contacts),
    st.builds(messages.Get, tx8, keys),
    st.builds(messages.Value, tx8, tokens, contacts.map(lambda c: c[:8]), records),
    st.builds(messages.Store, tx8, tokens, records),
    st.builds(messages.Stored, tx8, status, tokens),
    st.builds(messages.Watch, tx8, tokens, keys, st.integers(0, 2**63 - 1), st.integers(0, DHT_MAX_WATCH_S)),
    st.builds(messages.Watched, tx8, status, tokens, records),
    st.builds(messages.Push, tx8, records),
    st.builds(messages.PushAck, tx8),
)


@given(dht, st.integers(0, DHT_MAX_BODY))
@settings(quick, max_examples=400)
def test_a_dht_message_round_trips_padded_or_not_and_fits(message: messages.Message, pad_to: int) -> None:
    body = encode_message(message, pad_to=pad_to)
    assert decode_message(body) == message
    assert len(body) <= DHT_MAX_BODY
    assert len(body) <= max(pad_to, len(encode_message(message)))


# ---- frames and headers


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=10))
@quick
def test_frames_are_the_same_however_the_stream_is_cut(records: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame(Frame.RECORD, record) for record in records)
    reader, found, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == [[3, record] for record in records]


class Port:
    """Counts the credit that a stream gives back."""

    consumed = 0

    def consume(self, stream_id: int, count: int) -> None:
        """Credit."""
        self.consumed += count


@given(st.text(min_size=1, max_size=60), st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=9))
@quick
def test_a_stream_is_the_same_however_it_is_cut_and_all_its_credit_comes_back(
    service: str, payload: bytes, cuts: list[int]
) -> None:
    port = Port()
    stream = Stream(port, 0, opener=False)  # type: ignore[arg-type]
    data = encode_header(service) + payload
    at, turn, got = 0, 0, b""
    while at < len(data):
        size = cuts[turn % len(cuts)]
        stream.feed(data[at : at + size], at + size >= len(data))
        got += stream.read(cuts[(turn + 1) % len(cuts)])
        at, turn = at + size, turn + 1
    while part := stream.read(7):
        got += part
    assert (stream.service, got, stream.at_eof) == (service, payload, True)
    assert port.consumed == len(data)
