"""Every wire form as two functions: from fields to bytes and back, through the code that nodes run.

Files are named after numbers where there are any, so that a class can have a better name without a new vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from meshnode.base.address import pack_addr, parse_addr, unpack_addr
from meshnode.directory import bundle
from meshnode.discovery.dht import messages as dht
from meshnode.discovery.lan import Announcement, decode_text, encode_text, open_announcement, seal_announcement
from meshnode.gossip import messages as gossip
from meshnode.gossip.entry import Kind
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.price import digest_of
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.flows import decode_datagram, encode_datagram
from meshnode.quic.hello import FIELDS, Frame, FrameReader, frame, make_hello, make_welcome, open_hello, open_welcome
from meshnode.quic.preface import StreamStatus, encode_header
from meshnode.quic.stream import Stream
from meshnode.relay.frames import DOWN, UP, make_frame, parse_frame, proven
from meshnode.runtime.websocket import PURPOSE, knock_name, knock_of
from meshnode.stack import probe
from meshnode.stack.probe import connection_tag
from meshnode.topics import messages as topics
from meshnode.topics.overlay import scope_of
from meshnode.trust.grant import grant_id
from meshnode.trust.revocation import dht_key_of, name_of
from tests.vectors.signed import (
    ENTRIES,
    make_entry,
    make_grant,
    make_policy,
    make_record,
    make_revocation,
    make_rotation,
    make_succession,
    make_ticket,
    read_entry,
    read_grant,
    read_policy,
    read_record,
    read_revocation,
    read_rotation,
    read_succession,
    read_ticket,
)
from tests.vectors.values import Decode, Encode, Fields, plain


@dataclass(frozen=True)
class Form:
    """One wire form. ``decode`` is None for a hash; ``number`` is the one in its protocol's table, where it has one."""

    description: str
    encode: Encode
    decode: Decode | None
    number: int | None = None


# ---- sealed datagrams, knocks, mDNS, tunnels


def _sealer(seed: bytes, given: Fields) -> Sealer:
    clock = SimpleNamespace(wall=lambda: given["wall"], monotonic=lambda: 0.0)
    return Sealer(Identity(seed), MeshKey.from_text(given["mesh"]), clock, lambda n: given["nonce"], born=0.0)


def _seal(f: Fields, g: Fields) -> bytes:
    return _sealer(g["sender_seed"], g).seal(Identity(g["receiver_seed"]).id, f["body"])


def _unseal(data: bytes, g: Fields) -> Fields:
    sender, body = _sealer(g["receiver_seed"], g).unseal(data)  # type: ignore[misc]
    return {"sender": sender, "body": body}


def _knock(f: Fields, g: Fields) -> bytes:
    return _sealer(g["sender_seed"], g).knock(Identity(g["receiver_seed"]).id, g["odcid"])


def _check_knock(data: bytes, g: Fields) -> Fields:
    return {"sender": _sealer(g["receiver_seed"], g).check_knock(data, g["odcid"])}


def _tunnel_name(f: Fields, g: Fields) -> bytes:
    return knock_name(_knock(f, g | {"odcid": PURPOSE})).encode()


def _open_tunnel_name(data: bytes, g: Fields) -> Fields:
    return _check_knock(knock_of(data.decode()) or b"", g | {"odcid": PURPOSE})


def _text(f: Fields, g: Fields) -> bytes:
    said = Announcement(f["record"], f["sent"], f["asks"])
    return encode_text(seal_announcement(_sealer(g["sender_seed"], g), said))


def _open_text(data: bytes, g: Fields) -> Fields:
    said = open_announcement(_sealer(g["receiver_seed"], g), decode_text(data))
    assert said is not None
    return {"record": said.record, "sent": said.sent, "asks": said.asks}


# ---- the control stream and application streams


def _hello(f: Fields, g: Fields) -> bytes:
    listener = NodeId(g["listener"])
    said = {key: f[key] for key in ("boot", "record", "grants")}
    return make_hello(Identity(g["seed"]), listener, g["odcid"], bytes(listener), g["binding"], **said)


def _open_hello(data: bytes, g: Fields) -> Fields:
    (read,) = FrameReader().feed(data)
    assert read[0] == Frame.HELLO
    return plain(open_hello(read, NodeId(g["listener"]), Identity(g["seed"]).id, g["odcid"], g["binding"]))  # type: ignore[no-any-return]


def _open_welcome(data: bytes, g: Fields) -> Fields:
    (read,) = FrameReader().feed(data)
    assert read[0] == Frame.WELCOME
    return plain(open_welcome(read))  # type: ignore[no-any-return]


def _control(kind: Frame) -> tuple[Encode, Decode]:
    def make(f: Fields, g: Fields) -> bytes:
        values = [f[name] for name in FIELDS[kind]]
        return frame(kind, *[pack_addr(parse_addr(v)) if n == "address" else v for n, v in zip(f, values, strict=True)])

    def read(data: bytes, g: Fields) -> Fields:
        (found,) = FrameReader().feed(data)
        assert found[0] == kind
        named = zip(FIELDS[kind], found[1:], strict=True)
        return {name: unpack_addr(value) if name == "address" else value for name, value in named}  # type: ignore[arg-type]

    return make, read


class _Port:
    """A connection as its streams see it, which keeps what they send."""

    def __init__(self) -> None:
        self.sent = b""

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        self.sent += data

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def _open_header(data: bytes, g: Fields) -> Fields:
    stream = Stream(_Port(), 4, opener=False)  # type: ignore[arg-type]
    stream.feed(data, False)
    return {"service": stream.purpose.value + stream.service}


def _datagram(f: Fields, g: Fields) -> bytes:
    return encode_datagram(f["flow"], f["data"])


def _open_datagram(data: bytes, g: Fields) -> Fields:
    found = decode_datagram(data)
    assert found is not None
    return {"flow": found[0], "data": found[1]}


def _status(f: Fields, g: Fields) -> bytes:
    port, status = _Port(), StreamStatus[f["status"]]
    stream = Stream(port, 4, opener=False)  # type: ignore[arg-type]
    if status is StreamStatus.ACCEPTED:
        stream.accept()
    else:
        stream.refuse(status)
    return port.sent


def _open_status(data: bytes, g: Fields) -> Fields:
    stream = Stream(_Port(), 4, opener=True)  # type: ignore[arg-type]
    stream.feed(data, False)
    assert stream.status is not None
    return {"status": stream.status.name}


# ---- probes, relay frames, DHT, gossip


def _relay(f: Fields, g: Fields) -> bytes:
    return make_frame(g["key"], {"up": UP, "down": DOWN}[g["direction"]], f["reservation"], f["peer"], f["inner"])


def _open_relay(data: bytes, g: Fields) -> Fields:
    found = parse_frame(data)
    assert found is not None
    assert [proven(found, g["key"], way) for way in (UP, DOWN)] == [g["direction"] == "up", g["direction"] == "down"]
    return {"reservation": found.reservation, "peer": found.peer, "inner": found.inner}


def _flags(f: Fields, table: dict[int, str]) -> int:
    return sum(flag for flag, name in table.items() if name in f["flags"])


def _ping(f: Fields, g: Fields) -> bytes:
    return probe.encode_ping(probe.Ping(_flags(f, probe.PING_FLAGS), f["tx"], f["handle"]), g["size"])


def _open_ping(data: bytes, g: Fields) -> Fields:
    found = plain(probe.decode_ping(data))
    return found | {"flags": [name for flag, name in probe.PING_FLAGS.items() if found["flags"] & flag]}  # type: ignore[no-any-return]


def _pong(f: Fields, g: Fields) -> bytes:
    observed = parse_addr(f["observed"]) if f["observed"] else None
    return probe.encode_pong(probe.Pong(_flags(f, probe.PONG_FLAGS), f["tx"], observed), g.get("size", 0))


def _open_pong(data: bytes, g: Fields) -> Fields:
    found = plain(probe.decode_pong(data))
    return found | {"flags": [name for flag, name in probe.PONG_FLAGS.items() if found["flags"] & flag]}  # type: ignore[no-any-return]


def _handle(f: Fields, g: Fields) -> bytes:
    return connection_tag(SimpleNamespace(engine=SimpleNamespace(odcid=f["odcid"])))  # type: ignore[arg-type]


def _dht(cls: type[Any]) -> tuple[Encode, Decode]:
    def make(f: Fields, g: Fields) -> bytes:
        values = dict(f)
        if "contacts" in f:
            values["contacts"] = tuple(dht.ContactInfo(NodeId(c["id"]), parse_addr(c["addr"])) for c in f["contacts"])
        if "status" in f:
            values["status"] = dht.Status(f["status"])
        return dht.encode_message(cls(**values), pad_to=g.get("pad_to", 0))

    def read(data: bytes, g: Fields) -> Fields:
        found = dht.decode_message(data)
        assert type(found) is cls
        return plain(found)  # type: ignore[no-any-return]

    return make, read


def _contacts(value: Any) -> Any:
    if isinstance(value, dict):
        return gossip.Contact(NodeId(value["id"]), value["record"])
    return tuple(_contacts(item) for item in value) if isinstance(value, tuple) else value


def _table(protocol: Any, cls: type[Any]) -> tuple[Encode, Decode]:
    def make(f: Fields, g: Fields) -> bytes:
        return protocol.encode_message(cls(**{name: _contacts(value) for name, value in f.items()}))  # type: ignore[no-any-return]

    def read(data: bytes, g: Fields) -> Fields:
        found = protocol.decode_message(data)
        assert type(found) is cls
        return plain(found)  # type: ignore[no-any-return]

    return make, read


def _mesh_key(f: Fields, g: Fields) -> bytes:
    key = MeshKey.from_text(f["name"])
    return key.derive(f["purpose"].encode(), f["data"]) if f["purpose"] else key.bytes


FORMS: dict[str, Form] = {
    "id-overlay": Form("Overlay address of a node id", lambda f, g: NodeId(f["id"]).overlay.packed, None),
    "id-price": Form("what decides whether an id has its price", lambda f, g: digest_of(NodeId(f["id"])), None),
    "id-dht-key": Form("DHT key of a node id", lambda f, g: NodeId(f["id"]).dht_key, None),
    "id-text": Form(
        "Text of a node id", lambda f, g: str(NodeId(f["id"])).encode(), lambda d, g: {"id": NodeId.parse(d.decode())}
    ),
    "mesh-key": Form("Mesh key of a name, and keys derived from it", _mesh_key, None),
    "handle": Form("Handle of a connection in PINGs", _handle, None),
    "topic-scope": Form("Scope of a topic", lambda f, g: scope_of(f["topic"]), None),
    "sealed": Form("Sealed datagram", _seal, _unseal, 0x01),
    "knock": Form("Knock: the token of a QUIC Initial", _knock, _check_knock),
    "tunnel-name": Form("Server name of a tunnel's TLS, in ASCII: a knock", _tunnel_name, _open_tunnel_name),
    "mdns-text": Form("Announcement by mDNS, as the rdata of a TXT record", _text, _open_text),
    "relay-frame": Form("Relay frame", _relay, _open_relay, 0x02),
    "ping": Form("PING, the body of a sealed datagram", _ping, _open_ping, probe.PING),
    "pong": Form("PONG, the body of a sealed datagram", _pong, _open_pong, probe.PONG),
    "record": Form("Endpoint record", make_record, read_record),
    "grant": Form("Grant", make_grant, read_grant),
    "rotation": Form("Rotation of a mesh's secret", make_rotation, read_rotation),
    "grant-id": Form("Id of a grant, in ASCII", lambda f, g: grant_id(f["grant"]).encode(), None),
    "policy": Form("Signed policy", make_policy, read_policy),
    "succession": Form("Succession of a key", make_succession, read_succession),
    "revocation": Form("Revocation", make_revocation, read_revocation),
    "revocation-name": Form("Name of a revocation", lambda f, g: name_of(f["revocation"]), None),
    "revocation-dht-key": Form("Key of a revoked key or grant in the DHT", lambda f, g: dht_key_of(f["target"]), None),
    "offer-dht-key": Form(
        "Key of a service's or a name's offers in the DHT", lambda f, g: bundle.dht_key_of(f["kind"], f["name"]), None
    ),
    "offer-bundle": Form(
        "Bundle of offers in the DHT",
        lambda f, g: bundle.make_bundle(f["entries"]),
        lambda data, g: {"entries": bundle.open_bundle(data)},
    ),
    "ticket": Form("Ticket, in ASCII", make_ticket, read_ticket),
    "entry": Form("Gossip entry of any kind", make_entry, read_entry),
    "stream-header": Form("Header of an application stream", lambda f, g: encode_header(f["service"]), _open_header),
    "stream-flow": Form("Header of a stream that opens a flow", lambda f, g: encode_header(f["service"]), _open_header),
    "datagram": Form("Payload of a DATAGRAM frame", _datagram, _open_datagram),
    "stream-status": Form("Status byte of an application stream", _status, _open_status),
    "control-hello": Form("Hello", _hello, _open_hello, Frame.HELLO),
    "control-welcome": Form("Welcome", lambda f, g: make_welcome(f["boot"], f["record"]), _open_welcome, Frame.WELCOME),
}
FORMS |= {
    f"control-{kind.name.lower().replace('_', '-')}": Form(f"Control frame {kind.name}", *_control(kind), kind)
    for kind in Frame
    if kind not in (Frame.HELLO, Frame.WELCOME)
}
FORMS |= {
    f"entry-{kind.name.lower()}": Form(f"Gossip entry of kind {kind.name}", ENTRIES[kind], read_entry, kind)
    for kind in Kind
}
FORMS |= {
    f"dht-{kind:02x}": Form(f"DHT message {cls.__name__}", *_dht(cls), kind) for kind, (cls, _) in dht.MESSAGES.items()
}
FORMS |= {
    f"{prefix}-{number:02}": Form(f"{title} message {row.kind.__name__}", *_table(protocol, row.kind), number)
    for prefix, title, protocol in (("gossip", "Gossip", gossip), ("topics", "Topics", topics))
    for number, row in protocol.MESSAGES.items()
}
