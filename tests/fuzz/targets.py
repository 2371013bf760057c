"""All parsers that a stranger or a member can reach, each as a function of bytes, with valid messages to begin from.

A target returns for bytes that are refused as they should be, and raises for all else. Where a signature, a seal or
TLS stands before a parser, the target makes it: a member can sign and seal what it likes. ``test_targets.py`` tries
each for a moment; ``./dev fuzz`` runs millions of inputs through them, led by coverage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from meshnode.base.address import Addr
from meshnode.base.wire import WireError, decode, encode
from meshnode.directory.announcement import parse_offer
from meshnode.directory.bundle import is_bundle, make_bundle, open_bundle
from meshnode.directory.names import is_claim
from meshnode.discovery.dht import messages as dht
from meshnode.discovery.lan import decode_text, open_announcement
from meshnode.errors import ConfigError, GrantError, RecordError
from meshnode.gossip import messages as gossip
from meshnode.gossip.entry import DOMAIN as ENTRY
from meshnode.gossip.entry import Entry, open_entry
from meshnode.gossip.kinds import parse_accusation, parse_member
from meshnode.identity.keys import Identity
from meshnode.identity.record import DOMAIN as RECORD
from meshnode.identity.record import open_record
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.nat.portmap import http, natpmp, pcp, soap, ssdp, xml
from meshnode.quic import packets
from meshnode.quic.hello import Frame, FrameReader, open_hello, open_welcome
from meshnode.quic.preface import HeaderReader, encode_header, rule_in
from meshnode.relay.frames import parse_frame
from meshnode.runtime.client_hello import HEADER_LENGTH, record_length, server_name
from meshnode.stack import probe
from meshnode.topics import messages as topics
from meshnode.topics.entries import is_subscription, parse_message
from meshnode.trust.audit import parse_line
from meshnode.trust.authority import parse_chain
from meshnode.trust.chain import verify_chain
from meshnode.trust.grant import DOMAIN as GRANT
from meshnode.trust.grant import open_grant
from meshnode.trust.policy import parse_policy
from meshnode.trust.revocation import DOMAIN as REVOCATION
from meshnode.trust.revocation import open_revocation
from meshnode.trust.rotation import DOMAIN as ROTATION
from meshnode.trust.rotation import open_rotation
from meshnode.trust.signed_policy import open_policy, sign_policy
from meshnode.trust.ticket import parse_ticket
from tests.engines import INSTALLED
from tests.fuzz.packets import FirstFlight, Live
from tests.fuzz.target import Target, refused
from tests.fuzz.ways_in import WAYS_IN

ROOT = Path(__file__).parents[1]
ME, PEER = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
WALL = 1_700_000_100.0
NONCE = bytes(24)
ROUTER = ssdp.Url(Addr("192.0.2.1", 5000), "/d.xml")


class _Still:
    def monotonic(self) -> float:
        return 1.0

    def wall(self) -> float:
        return WALL


class _Counter:
    """Nonces that never come twice, so that what is sealed is never a replay."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, size: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(size, "big")


def vectors(*names: str) -> tuple[bytes, ...]:
    """Return the bytes of the golden vectors whose names match these patterns."""
    found = []
    for name in names:
        for path in sorted((ROOT / "vectors").glob(f"{name}.json")):
            found += [bytes.fromhex(case["hex"]) for case in json.loads(path.read_text("utf-8"))["cases"]]
    assert found, names
    return tuple(found)


def _sealer(identity: Identity) -> Sealer:
    return Sealer(identity, MeshKey.from_text("fuzz"), _Still(), _Counter(), born=WALL - 1)


ALICE, BOB = _sealer(ME), _sealer(PEER)


# ---- strangers


def quic_header(data: bytes) -> None:
    cid = packets.dcid_of(data)
    assert cid is None or len(cid) <= packets.MAX_CID_LENGTH
    packets.acceptable(data)
    packets.is_v1_initial(data)
    token = packets.initial_token(data)
    assert token is None or token in data


def sealed(data: bytes) -> None:
    assert BOB.unseal(data) is None, "only what another end has sealed opens"
    assert BOB.check_knock(data, b"12345678") is None


def client_hello(data: bytes) -> None:
    if len(data) >= HEADER_LENGTH:
        record_length(data[:HEADER_LENGTH])
    name = server_name(data)
    assert name is None or name.isascii()


def router(data: bytes) -> None:
    for parse in (pcp.parse, natpmp.parse, ssdp.parse, http.parse):
        refused(ValueError, parse, data)


def upnp(data: bytes) -> None:
    for parse in (xml.parse, lambda body: soap.parse(500, body), lambda body: soap.services(body, ROUTER)):
        refused(ValueError, parse, data)


def mdns(data: bytes) -> None:
    assert len(decode_text(data)) <= len(data)
    said = open_announcement(BOB, ALICE.encrypt_hint(data[:1300]))
    assert said is None or len(said.record) <= 1000


def ticket(data: bytes) -> None:
    refused(ConfigError, lambda text: parse_ticket(text.decode("utf-8", "replace")), data)


# ---- members


def cbor(data: bytes) -> None:
    try:
        found = decode(data, 4096)
    except WireError:
        return
    assert encode(found) == data


def record(data: bytes) -> None:
    for encoded in (data, ME.sign(RECORD + data) + data):
        refused(RecordError, lambda it: open_record(it, WALL), encoded)


def probes(data: bytes) -> None:
    ping, pong = probe.decode_ping(data), probe.decode_pong(data)
    assert ping is None or len(ping.tx) == len(ping.handle) == 8
    assert pong is None or len(pong.tx) == 8


def dht_body(data: bytes) -> None:
    try:
        message = dht.decode_message(data)
    except WireError:
        return
    assert dht.decode_message(dht.encode_message(message)) == message


def gossip_message(data: bytes) -> None:
    try:
        message = gossip.decode_message(data)
    except WireError:
        return
    assert gossip.decode_message(gossip.encode_message(message)) == message


def topic_message(data: bytes) -> None:
    try:
        message = topics.decode_message(data)
    except WireError:
        return
    assert topics.decode_message(topics.encode_message(message)) == message


def entry(data: bytes) -> None:
    for encoded in (data, ME.sign(ENTRY + data) + data):
        found = open_entry(encoded, WALL)
        if isinstance(found, Entry):
            for read in (parse_member, parse_accusation, parse_offer, is_claim, is_subscription):
                read(found)
            parse_message(found, "news")


def offers(data: bytes) -> None:
    """A bundle of offers; what is one is made of its parts again."""
    found = open_bundle(data)
    if found:
        assert is_bundle(data)
        assert make_bundle(found) == data
    for encoded in found:
        entry(encoded)


def grant(data: bytes) -> None:
    for encoded in (data, ME.sign(GRANT + data) + data):
        refused(GrantError, open_grant, encoded)
        refused(GrantError, lambda it: verify_chain([it], PEER.id, ME.id, WALL), encoded)


def statement(data: bytes) -> None:
    """A revocation, and a rotation of the mesh's secret, as they are and signed by the authority."""
    for encoded in (data, ME.sign(REVOCATION + data) + data):
        refused((GrantError, ValueError), lambda it: open_revocation(it, ME.id, WALL), encoded)
    for encoded in (data, ME.sign(ROTATION + data) + data):
        open_rotation(encoded, ME.id)


def chain_file(data: bytes) -> None:
    refused((GrantError, ValueError), parse_chain, data)


def control(data: bytes) -> None:
    """Frames of the control stream, the first three of them read as each kind is."""
    reader = FrameReader()
    try:
        found = reader.feed(data[:7]) + reader.feed(data[7:])
    except WireError:
        return
    for fields in found[:3]:
        refused(WireError, lambda it: open_hello(it, PEER.id, ME.id, b"12345678", bytes(range(32))), fields)
        refused(WireError, open_welcome, fields)
        if fields[0] == Frame.GOSSIP and len(fields) == 2 and isinstance(fields[1], bytes):
            gossip_message(fields[1])


def stream(data: bytes) -> None:
    reader = HeaderReader()
    try:
        if reader.feed(data[:3]) is None:
            reader.feed(data[3:])
    except WireError:
        pass
    rule_in(data)


def relay(data: bytes) -> None:
    parse_frame(data)


def policy(data: bytes) -> None:
    refused(ConfigError, parse_policy, data)


def signed_policy(data: bytes) -> None:
    refused((ConfigError, WireError, GrantError), lambda it: open_policy(it, ME.id), data)


def audit(data: bytes) -> None:
    parse_line(data)


def _bodies(signed: Iterable[bytes]) -> tuple[bytes, ...]:
    """Envelopes, and what is signed in them."""
    return tuple(part for encoded in signed for part in (encoded, encoded[64:]))


POLICY = b"""version = 3
reasons = "told"
[[allow]]
from = ["role:dev", "name:laptop"]
to = "any"
services = ["web", "db-*"]
publish = "alarm/*"
[[deny]]
name = "no"
from = "any"
relay = true
"""
TARGETS: dict[str, Target] = {
    "quic_header": Target(quic_header, (b"\xc3\0\0\0\1\x08" + bytes(8) + b"\0\x40\x60" + bytes(96), b"A" + bytes(40))),
    "sealed": Target(sealed, vectors("sealed", "knock")),
    "client_hello": Target(client_hello, (bytes.fromhex("160301002f0100002b0303") + bytes(45),)),
    "router": Target(
        router,
        (
            bytes.fromhex("0281000000000e10000030390000000000000000000000000001020304050607"),
            bytes.fromhex("0080000000000005cb007105"),
            b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
            b"LOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n",
        ),
    ),
    "upnp": Target(
        upnp, (b"<?xml version='1.0'?><root><URLBase>http://a/</URLBase><controlURL>/c</controlURL></root>",)
    ),
    "mdns": Target(mdns, vectors("mdns-text")),
    "ticket": Target(ticket, vectors("ticket")),
    "cbor": Target(cbor, vectors("record", "control-hello")),
    "record": Target(record, _bodies(vectors("record"))),
    "probes": Target(probes, vectors("ping", "pong")),
    "dht": Target(dht_body, vectors("dht-*")),
    "gossip": Target(gossip_message, vectors("gossip-*")),
    "topics": Target(topic_message, vectors("topics-*")),
    "entry": Target(entry, _bodies(vectors("entry*"))),
    "offers": Target(offers, vectors("offer-bundle")),
    "grant": Target(grant, _bodies(vectors("grant"))),
    "statement": Target(statement, _bodies(vectors("revocation", "rotation"))),
    "chain_file": Target(chain_file, vectors("grant")),
    "control": Target(control, vectors("control-*")),
    "stream": Target(stream, (encode_header("echo"), encode_header("é" * 20))),
    "relay": Target(relay, vectors("relay-frame")),
    "policy": Target(policy, (POLICY,)),
    "signed_policy": Target(signed_policy, (sign_policy(ME, POLICY).encoded,)),
    "audit": Target(audit, (b'{"seq":1,"time":1,"kind":"admitted"}\n',)),
    **WAYS_IN,
}
FRAMES = (
    b"\x0a\x00\x05hello",
    b"\x06\x00\x04\x01\x00\x00\x00",
    b"\x02\x00\x00\x00\x00",
    b"\x05\x00\x00\x04\x00\x00\x00",
    b"\x10\x40\x40\x11\x00\x40\x40\x12\x08",
    b"\x18\x01\x00\x08" + bytes(24),
    b"\x1a" + bytes(8) + b"\x1c\x00\x00\x00",
)
for name in INSTALLED:
    TARGETS[f"frames_{name}"] = Target(Live(name), FRAMES, share=20)
    TARGETS[f"first_flight_{name}"] = Target(FirstFlight(name), FRAMES, share=4)
