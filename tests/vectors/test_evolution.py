"""The rules by which the protocol may grow: each sentence of "Evolution" in the wire format's page is one test.

A test's docstring is the sentence, to the letter; the last test compares the two lists.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.address import Addr, pack_addr
from meshnode.base.metrics import Metrics
from meshnode.base.wire import WireError, decode, encode
from meshnode.discovery.dht import messages as dht
from meshnode.errors import ConnectionLost, RecordError, RecordReject, ServiceNotFound
from meshnode.gossip import Gossip
from meshnode.gossip import messages as gossip
from meshnode.gossip.effects import Send
from meshnode.gossip.entry import DOMAIN as ENTRY_DOMAIN
from meshnode.gossip.entry import Entry, EntryReject, open_entry, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.record import DOMAIN as RECORD_DOMAIN
from meshnode.identity.record import Endpoint, open_record, sign_record
from meshnode.identity.sealing import SEALED, MeshKey, Sealer
from meshnode.quic.connection import State
from meshnode.quic.engines import aioquic
from meshnode.quic.hello import FIELDS, HEADER, Frame, FrameReader, open_hello, open_welcome
from meshnode.quic.preface import StreamStatus
from meshnode.quic.seam import ALPN
from meshnode.relay.server import Reservation
from meshnode.sdk.node import runtime_of
from meshnode.sim.link import ModelEngines
from meshnode.sim.nat import Nat
from meshnode.sim.world import SimNode, World
from meshnode.stack import probe
from meshnode.stack.probe import Pinged
from meshnode.topics import messages as topics
from tests.conftest import MakeNode
from tests.interop.test_handshakes import LISTENER, Side, _by_hand
from tests.sim.test_relays import _mesh
from tests.vectors.forms import FORMS
from tests.vectors.values import Fields, rich

FOLDER = Path(__file__).parent
PAGE = (FOLDER.parents[1] / "docs" / "reference" / "wire-format.md").read_text()
ME, PEER, OTHER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
WALL = 1_700_000_000.25
BOTH = ("aioquic", "aioquic")


def _vectors(prefix: str) -> list[tuple[bytes, Fields]]:
    """Every vector whose file's name begins so: its bytes, and what its receiver knows."""
    cases = [case for path in FOLDER.glob(f"{prefix}*.json") for case in json.loads(path.read_text())["cases"]]
    assert cases
    return [(bytes.fromhex(case["hex"]), rich(case["given"])) for case in cases]


def _pair() -> tuple[World, SimNode, SimNode]:
    """Two nodes with a connection, in virtual time."""
    world = World(1)
    here, there = (
        SimNode(world, f"10.0.0.{n}", ModelEngines(world.entropy), gossip=True, identity=identity)
        for n, identity in ((1, ME), (2, PEER))
    )
    here.join(there)
    here.connect(there.id)
    world.run(1.0)
    return world, here, there


def _sealer(world: World, identity: Identity) -> Sealer:
    """What the node with this identity seals and unseals with; it remembers no nonce."""
    return Sealer(identity, MeshKey.from_text("sim"), world, world.entropy, born=0.0)


def _control(node: SimNode, peer: SimNode, *fields: object) -> None:
    """Say something on the control stream that no version 1 node says."""
    connection = node.mesh.sessions[peer.id].connection
    assert connection is not None
    body = encode(list(fields))
    connection.engine.send(0, HEADER.pack(len(body)) + body)
    connection._events.on_dirty(connection)
    node.mesh.flush(node.world.now)


def _ready(node: SimNode, peer: SimNode) -> bool:
    connection = node.mesh.sessions[peer.id].connection
    return connection is not None and connection.state is State.READY


def _router() -> Gossip:
    """A gossip core with two neighbours."""
    core = Gossip(ME, rng=random.Random(1), metrics=Metrics(), now=0.0, wall=WALL)
    for peer in (PEER, OTHER):
        core.on_link(peer.id, True, 0.0)
        core.on_message(peer.id, gossip.Neighbour(True, b""), 0.0)
    core.take_effects()
    return core


def _resigned(domain: bytes, data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return a signed form of ME's with its fields changed and signed again."""
    fields = decode(data[64:], 5000)
    change(fields)
    body = encode(fields)
    return ME.sign(domain + body) + body


def _as_version_2(fields: list[Any]) -> None:
    fields[0] = 2


def _one_more(fields: list[Any]) -> None:
    fields.append(None)


def test_numbers_are_kept() -> None:
    """A number that has a vector keeps its meaning and is not used again."""
    tables: dict[str, Any] = {
        "gossip-": gossip.MESSAGES,
        "topics-": topics.MESSAGES,
        "dht-": dht.MESSAGES,
        "control-": FIELDS,
    }
    for prefix, table in tables.items():
        for path in FOLDER.glob(f"{prefix}*.json"):
            vector = json.loads(path.read_text())
            assert vector["number"] in table, f"{path.name}: the number was in use and may not mean anything else"
            for case in vector["cases"]:
                form = FORMS[path.stem]
                assert form.encode(rich(case["fields"]), rich(case["given"])).hex() == case["hex"]


def test_first_bytes() -> None:
    """A datagram with an unknown first byte is dropped and counted."""
    world, here, there = _pair()
    sent = world.sent
    unknown = [bytes([n]) + bytes(100) for n in range(256) if not n & 0x40 and n not in (1, 2)]
    there.mesh.receive([(data, here.addr) for data in unknown], world.now)
    assert there.mesh.metrics.counters["drop_unknown"] == len(unknown)
    assert world.sent == sent
    assert _ready(there, here)


def test_first_bytes_of_bodies() -> None:
    """A sealed datagram whose body begins with an unknown byte is dropped and counted."""
    world, here, there = _pair()
    known = {probe.PING, probe.PONG, *dht.MESSAGES}
    unknown = [n for n in range(256) if n not in known]
    sent = world.sent
    for kind in unknown:
        datagram = _sealer(world, ME).seal(PEER.id, bytes([kind]) + bytes(60))
        there.mesh.receive([(datagram, here.addr)], world.now)
    assert there.mesh.metrics.counters["drop_sealed_kind"] == len(unknown)
    assert world.sent == sent


def test_control_frames() -> None:
    """A control frame of an unknown kind is ignored on a ready connection, and ends one that is not ready."""
    world, here, there = _pair()
    for kind in (0, 10, 15, 18, 255, 2**40):
        _control(here, there, kind, b"of a later version")
    world.run(1.0)
    assert _ready(here, there)
    assert _ready(there, here)
    early, late, wire = _by_hand(BOTH, LISTENER, LISTENER)
    early.connection._on_handshake = lambda: _first_frame(early)  # type: ignore[method-assign]
    for _ in wire:
        if late.closed is not None:
            break
    assert isinstance(late.closed, ConnectionLost)
    assert "out of order" in str(late.closed)


def _first_frame(side: Side) -> None:
    body = encode([18, b"of a later version"])
    side.connection.engine.send(side.connection.engine.open_stream(), HEADER.pack(len(body)) + body)


def test_gossip_types() -> None:
    """A gossip message of an unknown type is ignored and counted, and is not held against its sender."""
    core = _router()
    unknown = [n for n in range(300) if n not in gossip.MESSAGES]
    for number in unknown:
        core.receive(PEER.id, encode([number, b"of a later version"]), 1.0)
    assert core.metrics.counters["gossip_drop_type"] == len(unknown)
    assert "gossip_drop_message" not in core.metrics.counters
    assert core.reputation.points(PEER.id) == 0
    assert PEER.id in core.hyparview.active


@pytest.mark.parametrize("kind", [3, 15, 17, 0xFFFF])
def test_entry_kinds(kind: int) -> None:
    """An entry of an unknown kind is verified, kept if its kind is below 16, and passed on."""
    core = _router()
    ms = int(WALL * 1000)
    entry = sign_entry(PEER, kind=kind, name="of a later version", seq=ms, issued_ms=ms, ttl=60, value=b"x")
    forged = entry.encoded[:-1] + b"y"
    core.on_message(PEER.id, gossip.Eager(b"", ((0, entry.encoded),)), 0.0)
    core.tick(0.1, WALL)
    passed = [e.message for e in core.take_effects() if isinstance(e, Send) and e.peer == OTHER.id]
    assert [m.items[0][1] for m in passed if isinstance(m, gossip.Eager)] == [entry.encoded]
    assert [e.encoded for e in core.store.entries(kind)] == ([entry.encoded] if kind < 16 else [])
    assert open_entry(forged, WALL) is EntryReject.FORGED


def test_capabilities() -> None:
    """An unknown capability is ignored."""
    world, here, _ = _pair()
    there = SimNode(world, "10.0.0.3", ModelEngines(world.entropy), identity=OTHER)
    said = sign_record(
        OTHER,
        seq=int(world.wall() * 1000),
        issued_ms=int(world.wall() * 1000),
        ttl=60,
        endpoints=(Endpoint(there.addr),),
        capabilities=("of a later version", "v2"),
    )
    record = here.mesh.offer_record(said.encoded, "a test", world.now)
    assert record is not None
    assert record.capabilities == ("of a later version", "v2")
    here.connect(OTHER.id)
    assert world.run(1.0, lambda: OTHER.id in here.mesh.sessions and _ready(here, there))


def test_flags() -> None:
    """An unknown flag of a PING or PONG is ignored."""
    world, here, there = _pair()
    deliver, changed = world.deliver, []
    unknown = {probe.PING: 0xFF & ~sum(probe.PING_FLAGS), probe.PONG: 0xFF & ~sum(probe.PONG_FLAGS)}

    def set_them(source: Addr, to: Addr, datagram: bytes, nat: Nat | None = None) -> None:
        sender, receiver = (ME, PEER) if to == there.addr else (PEER, ME)
        opened = _sealer(world, receiver).unseal(datagram) if datagram[0] == SEALED else None
        if opened is not None and opened[1][0] in unknown:
            kind, flags = opened[1][:2]
            changed.append(kind)
            body = bytes([kind, flags | unknown[kind]]) + opened[1][2:]
            datagram = _sealer(world, sender).seal(receiver.id, body)
        deliver(source, to, datagram, nat)

    world.deliver = set_them  # type: ignore[method-assign]
    answers: list[Pinged] = []
    connection = here.mesh.sessions[there.id].connection
    assert connection is not None
    here.mesh.ping(connection, 1.0, world.now, answers.append)
    here.mesh.flush(world.now)
    world.run(2.0)
    assert set(changed) == {probe.PING, probe.PONG}
    assert [answer.rtt is not None for answer in answers] == [True]
    assert _ready(here, there)
    assert _ready(there, here)


def test_fields() -> None:
    """A DHT or gossip message, a Hello, a Welcome, a record or an entry with one field more than its table says is refused."""  # noqa: E501
    for data, _ in _vectors("gossip-"):
        with pytest.raises(WireError):
            gossip.decode_message(encode([*decode(data, 20_000), None]))
    for data, _ in _vectors("dht-"):
        with pytest.raises(WireError):
            dht.decode_message(data[:1] + encode([*decode(data[1:], 20_000), None]))
    for data, given in _vectors("control-hello"):
        (fields,) = FrameReader().feed(data)
        with pytest.raises(WireError):
            open_hello([*fields, None], PEER.id, ME.id, given["odcid"], given["binding"])
    for data, _ in _vectors("control-welcome"):
        (fields,) = FrameReader().feed(data)
        with pytest.raises(WireError):
            open_welcome([*fields, None])
    for data, given in _vectors("record"):
        with pytest.raises(RecordError) as caught:
            open_record(_resigned(RECORD_DOMAIN, data, _one_more), given["wall"])
        assert caught.value.reason is RecordReject.MALFORMED
    for data, given in _vectors("entry"):
        assert open_entry(_resigned(ENTRY_DOMAIN, data, _one_more), given["wall"]) is EntryReject.MALFORMED


def test_fields_of_relay_frames() -> None:
    """A RELAY_GRANT, INTRODUCE or INTRODUCED with one field more or less is dropped and counted."""
    world, (relay, *_), here, there = _mesh(relays=1)
    here.connect(there.id)  # the two talk through the relay
    grant, _ = relay.mesh.context.serving.server.reserve(here.id, ("a network",), world.now)  # type: ignore[union-attr]
    assert isinstance(grant, Reservation)
    frames = [
        (relay, here, [Frame.RELAY_GRANT, grant.id, grant.key]),
        (here, relay, [Frame.INTRODUCE, bytes(there.id)]),
        (relay, here, [Frame.INTRODUCED, bytes(there.id), pack_addr(there.addr), 0]),
    ]
    for source, target, fields in frames:
        dropped = [target.mesh.metrics.counters.get("drop_relay_control", 0)]
        for said in (fields, [*fields, None], fields[:-1]):
            _control(source, target, *said)
            world.run(0.3)
            dropped.append(target.mesh.metrics.counters.get("drop_relay_control", 0))
        assert [n - dropped[0] for n in dropped] == [0, 0, 1, 2], fields[0]
        assert _ready(target, source)
    assert "drop_relay_control" not in there.mesh.metrics.counters


def test_fields_of_a_record_frame() -> None:
    """A RECORD with one field more ends the connection."""
    world, here, there = _pair()
    ended = there.mesh.sessions[here.id].connection
    _control(here, there, Frame.RECORD, b"", None)
    world.run(1.0)
    assert ended is not None
    assert "record frame malformed" in str(ended.error)


def test_numbers_in_known_forms() -> None:
    """An unknown number in a known form (endpoint kind, DHT status, stream status) is refused as malformed."""

    def unknown_kind(fields: list[Any]) -> None:
        fields[5][0][0] = 4

    for data, given in _vectors("record"):
        with pytest.raises(RecordError) as caught:
            open_record(_resigned(RECORD_DOMAIN, data, unknown_kind), given["wall"])
        assert caught.value.reason is RecordReject.MALFORMED
    with pytest.raises(WireError):
        dht.decode_message(b"\x17" + encode([bytes(8), len(dht.Status), b""]))
    with pytest.raises(WireError):
        FORMS["stream-status"].decode(bytes([len(StreamStatus)]), {})  # type: ignore[misc]


def test_versions_of_records_and_entries() -> None:
    """A record or an entry of another version is refused as malformed."""
    for data, given in _vectors("record"):
        for domain in (RECORD_DOMAIN, b"meshnode endpoint record v2\0"):
            with pytest.raises(RecordError) as caught:
                open_record(_resigned(domain, data, _as_version_2), given["wall"])
            assert caught.value.reason is RecordReject.MALFORMED
    for data, given in _vectors("entry"):
        assert isinstance(open_entry(_resigned(ENTRY_DOMAIN, data, lambda fields: None), given["wall"]), Entry)
        for domain in (ENTRY_DOMAIN, b"meshnode gossip entry v2\0"):
            assert open_entry(_resigned(domain, data, _as_version_2), given["wall"]) is EntryReject.MALFORMED


async def test_services(make_node: MakeNode) -> None:
    """A stream to an unknown service is answered with status 1, and the connection stays."""
    there = await make_node()
    here = await make_node(seed=there)
    connection = await here.connect(there.id)
    underneath = runtime_of(here).stack.sessions[there.id].connection
    for service in ("of a later version", "\0of a later version"):
        with pytest.raises(ServiceNotFound):
            await connection.open(service)
    assert StreamStatus.NO_SUCH_SERVICE == 1
    assert (await here.ping(there.id)).rtt is not None
    assert runtime_of(here).stack.sessions[there.id].connection is underneath


@pytest.mark.parametrize("offered", [["meshnode/2", ALPN], [ALPN, "meshnode/2"], ["meshnode/2"], ["h3"]])
def test_alpn(offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is offered several ALPNs takes `meshnode/1`, and refuses a dialler that does not offer it."""
    made = aioquic._configuration

    def later(identity: Identity, is_client: bool, idle_timeout: float) -> Any:
        configuration = made(identity, is_client, idle_timeout)
        if is_client:
            configuration.alpn_protocols = offered
        return configuration

    monkeypatch.setattr(aioquic, "_configuration", later)
    here, there, wire = _by_hand(BOTH, LISTENER, LISTENER)
    for _ in itertools.islice(wire, 100):
        if here.closed is not None or here.connection.state is there.connection.state is State.READY:
            break
    assert (here.connection.state is State.READY) == (ALPN in offered)
    assert (there.hello is not None) == (ALPN in offered)
    if ALPN not in offered:
        assert here.closed is not None


def test_close_codes() -> None:
    """An unknown close code ends a connection like any other."""
    here, there, wire = _by_hand(BOTH, LISTENER, LISTENER)
    for _ in wire:
        if here.connection.state is there.connection.state is State.READY:
            break
    there.connection.engine.close(999, "of a later version")
    for _ in wire:
        if here.closed is not None:
            break
    assert isinstance(here.closed, ConnectionLost)
    assert "of a later version" in str(here.closed)


def test_every_sentence_of_the_rule_is_a_test() -> None:
    section = PAGE[PAGE.index("## Evolution") :]
    sentences = [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)]
    tests = [value for name, value in globals().items() if name.startswith("test_") and value.__doc__]
    assert sentences == [" ".join(test.__doc__.split()) for test in tests]
