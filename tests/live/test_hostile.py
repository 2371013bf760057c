"""Members that lie: impostors, records that no node should believe, and neighbours of another mesh."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nacl.bindings import crypto_secretbox_open

from meshnode import Identity, Node
from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.base.wire import encode
from meshnode.discovery.dht import messages
from meshnode.errors import MeshError, NotFound, PeerIdentityError
from meshnode.identity.record import DOMAIN, Endpoint, sign_record
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic import packets
from meshnode.quic.engines import aioquic as engines
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, echo
from tests.given_time import GivenTime, wait_for, within

Reply = Callable[[bytes, Addr], list[bytes]]


class Socket(asyncio.DatagramProtocol):
    """A bare UDP socket on loopback that says what ``reply`` tells it to."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.sent = 0
        self.received: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        """Remember the transport."""
        self.transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer."""
        self.received.append(data)
        for datagram in self.reply(data, Addr(*addr[:2])):
            self.send(datagram, Addr(*addr[:2]))

    def send(self, datagram: bytes, to: Addr) -> None:
        """Send one datagram."""
        self.sent += len(datagram)
        self.transport.sendto(datagram, to)

    @property
    def addr(self) -> Addr:
        """Where it listens."""
        return Addr(*self.transport.get_extra_info("sockname")[:2])


@asynccontextmanager
async def bare_socket(reply: Reply = lambda data, source: []) -> AsyncIterator[Socket]:
    """A Socket for the length of a block."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Socket(reply), ("127.0.0.1", 0))
    try:
        yield protocol
    finally:
        transport.close()


async def until(holds: Callable[[], object], seconds: float = 3.0) -> None:
    """Wait until it holds; fail when it does not within ``seconds``."""
    async with within(seconds):
        while not holds():  # noqa: ASYNC110 - counters announce no change
            await asyncio.sleep(0.005)


def counters(node: Node) -> dict[str, int]:
    """What the node has counted."""
    found: dict[str, int] = node.status()["counters"]
    return found


def member(identity: Identity | None = None, mesh: str = "open") -> Sealer:
    """A host with the mesh key and a key of its own."""
    clock = SystemClock()
    return Sealer(identity or Identity.generate(), MeshKey.from_text(mesh), clock, os.urandom, born=clock.wall() - 60)


# ---- impostors


class Impostor:
    """Knows the mesh and the victim's id, stands at its address, completes QUIC with what it has."""

    def __init__(self, victim: Identity, *, stolen_certificate: bool) -> None:
        self.identity = Identity.generate()
        self.mesh_key = MeshKey.from_text("open").derive(b"mesh-receiver", bytes(victim.id))
        self.victim = victim
        self.stolen = stolen_certificate
        self.knocks = 0
        self.engine: engines.AioquicEngine | None = None

    def reply(self, data: bytes, source: Addr) -> list[bytes]:
        """Accept whatever knocks, without checking what it cannot check."""
        now = time.monotonic()
        if not data[0] & 0x40:
            return []
        if self.engine is None:
            odcid, token = packets.dcid_of(data), packets.initial_token(data)
            assert odcid is not None
            assert token is not None
            assert crypto_secretbox_open(token[24:], token[:24], self.mesh_key), "the mesh key opens the outer box"
            self.knocks += 1
            self.engine = engines.AioquicEngines().accept(self.identity, odcid, 10.0, now)
            if self.stolen:
                certificate, _ = engines._credentials(self.victim)  # public; its private key is not
                self.engine._quic.configuration.certificate = certificate
        self.engine.receive([data], now)
        return self.engine.transmit(now)


@pytest.mark.parametrize("stolen", [False, True], ids=["own certificate", "the victim's certificate"])
async def test_an_impostor_at_the_dialled_address_is_a_peer_identity_error_and_fast(
    make_node: MakeNode, stolen: bool
) -> None:
    victim = Identity.generate()
    impostor = Impostor(victim, stolen_certificate=stolen)
    async with bare_socket(impostor.reply) as socket:
        dialler = await make_node(seeds=(f"{victim.id}@{socket.addr}",))
        started = GivenTime()
        with pytest.raises(PeerIdentityError) as caught:
            await wait_for(dialler.connect(victim.id), 8)
        assert started.seconds < 1.5, "as soon as the handshake shows the key"
        assert impostor.knocks == 1
        assert victim.id.short in caught.value.message
        assert caught.value.hint
        assert dialler.peers() == []
        assert not runtime_of(dialler).stack.sessions, "nothing of it is kept"


async def test_after_an_impostor_the_real_node_is_reached_where_it_is(make_node: MakeNode) -> None:
    real = await make_node()
    impostor = Impostor(runtime_of(real).stack.context.identity, stolen_certificate=False)
    async with bare_socket(impostor.reply) as socket:
        dialler = await make_node(seeds=(f"{real.id}@{socket.addr}",))
        with pytest.raises(PeerIdentityError):
            await wait_for(dialler.connect(real.id), 8)
        runtime_of(dialler).stack.offer_record(real.record.encoded, "ticket", time.monotonic())
        runtime_of(dialler).stack.resolution.hints.clear()
        outcome = await wait_for(dialler.ping(real.id), 8)
        assert outcome.rtt is not None


# ---- records


def bad_records(identity: Identity) -> dict[str, bytes]:
    """One record for each reason to refuse it, all but the forged one properly signed."""
    wall = time.time()
    place = (Endpoint(Addr("127.0.0.1", 9)),)

    def signed(issued: float, ttl: int = 600) -> bytes:
        seq = int(wall * 1000)
        return sign_record(identity, seq=seq, issued_ms=int(issued * 1000), ttl=ttl, endpoints=place).encoded

    good = signed(wall)
    variant = encode([1, bytes(identity.id), 1, int(wall * 1000), 600, [], [], []])
    variant = variant[:1] + b"\x18\x01" + variant[2:]
    short = encode([1, bytes(identity.id), 1, int(wall * 1000), 600, [], []])
    big = encode([1, bytes(identity.id), 1, int(wall * 1000), 600, [], [], ["x" * 990]])
    return {
        "forged": bytes([good[0] ^ 1]) + good[1:],
        "expired": signed(wall - 700),
        "future": signed(wall + 3600),
        "oversized": identity.sign(DOMAIN + big) + big,
        "not_canonical": identity.sign(DOMAIN + variant) + variant,
        "malformed": identity.sign(DOMAIN + short) + short,
    }


REASONS = tuple(bad_records(Identity.generate()))


async def test_bad_records_of_a_live_peer_are_dropped_by_name_and_the_connection_goes_on(make_node: MakeNode) -> None:
    node = await make_node()
    liar = await make_node(seed=node)
    node.serve("echo", echo, allow=["any"])
    connection = await liar.connect(node.id)
    before = runtime_of(node).stack.resolution.resolver.get(liar.id, time.time())
    assert before is not None
    for reason, encoded in bad_records(runtime_of(liar).stack.context.identity).items():
        connection._link.push_record(encoded)
        runtime_of(liar).driver.on_dirty()
        await until(lambda reason=reason: counters(node).get(f"record_{reason}") == 1)
    assert runtime_of(node).stack.resolution.resolver.get(liar.id, time.time()) == before
    reader, writer = await connection.open("echo")
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"


async def test_a_live_peer_that_breaks_the_control_stream_loses_its_connection_only(make_node: MakeNode) -> None:
    node = await make_node()
    liar, friend = await make_node(seed=node), await make_node(seed=node)
    kept = await friend.connect(node.id)
    for junk in (b"\xff\xff", b"\x00\x01\x80", b"\x00\x03\x82\x03\x00", b"\x00\x00"):
        connection = await liar.connect(node.id)
        connection._link.engine.send(0, junk)
        runtime_of(liar).stack.connections.touch(connection._link)
        runtime_of(liar).driver.on_dirty()
        await until(lambda connection=connection: not connection.is_open)
    assert kept.is_open
    assert (await friend.ping(node.id)).rtt is not None


async def test_bad_records_stored_in_the_dht_are_dropped_by_name_and_never_handed_on(make_node: MakeNode) -> None:
    node = await make_node()
    owner, sealer = Identity.generate(), member()
    answers: list[messages.Message] = []

    def read(data: bytes, source: Addr) -> list[bytes]:
        opened = sealer.unseal(data)
        if opened is not None and opened[1][0] >= 0x10:
            answers.append(messages.decode_message(opened[1]))
        return []

    async with bare_socket(read) as socket:

        def say(message: messages.Message) -> None:
            body = messages.encode_message(message, pad_to=1000)
            socket.send(sealer.seal(node.id, body), node.record.endpoints[0].addr)

        say(messages.Ping(b"t" * 8))
        await until(lambda: any(isinstance(a, messages.Pong) for a in answers))
        token = next(a.token for a in answers if isinstance(a, messages.Pong))
        for reason, encoded in bad_records(owner).items():
            say(messages.Store(b"s" * 8, token, encoded))
            name = "dht_malformed" if reason == "oversized" else f"dht_record_{reason}"
            await until(lambda name=name: counters(node).get(name) == 1)
        say(messages.Get(b"g" * 8, owner.id.dht_key))
        await until(lambda: any(isinstance(a, messages.Value) for a in answers))
        assert [a.record for a in answers if isinstance(a, messages.Value)] == [b""]
        assert {a.status for a in answers if isinstance(a, messages.Stored)} == {messages.Status.INVALID}


async def test_bad_answers_of_the_dht_are_dropped_by_name_and_the_good_one_is_found(make_node: MakeNode) -> None:
    """The only contact answers every GET with a record that must not be believed, of each kind in turn."""
    target = Identity.generate()
    other = Identity.generate()
    now = time.time()
    good, foreign = (
        sign_record(
            signer, seq=int(now * 1000), issued_ms=int(now * 1000), ttl=600, endpoints=(Endpoint(Addr("127.0.0.1", 9)),)
        )
        for signer in (target, other)
    )
    lies = {k: v for k, v in bad_records(target).items() if k != "oversized"} | {"wrong_id": foreign.encoded}
    for reason, lie in lies.items():
        sealer = member()
        says = [lie]

        def reply(data: bytes, source: Addr, sealer: Sealer = sealer, says: list[bytes] = says) -> list[bytes]:
            opened = sealer.unseal(data)
            if opened is None or opened[1][0] < 0x10:
                return []
            asked, message = opened[0], messages.decode_message(opened[1])
            answer: messages.Message
            if isinstance(message, messages.Ping):
                answer = messages.Pong(message.tx, b"o" * 8)
            elif isinstance(message, messages.Find):
                answer = messages.Nodes(message.tx, b"o" * 8, ())
            elif isinstance(message, messages.Get):
                answer = messages.Value(message.tx, b"o" * 8, (), says[0] if message.key == target.id.dht_key else b"")
            elif isinstance(message, messages.Store):
                answer = messages.Stored(message.tx, messages.Status.OK, b"")
            else:
                return []
            return [sealer.seal(asked, messages.encode_message(answer))]

        async with bare_socket(reply) as socket:
            node = await make_node(seeds=(f"{sealer._identity.id}@{socket.addr}",))
            await until(runtime_of(node).stack.dht.contacts)
            asking = asyncio.ensure_future(node.resolve(target.id))
            await until(lambda node=node, reason=reason: counters(node).get(f"dht_record_{reason}", 0) >= 1)
            assert not asking.done(), "no lie answers the question"
            says[0] = good.encoded
            runtime_of(node).stack.add_seed(sealer._identity.id, [socket.addr], time.monotonic())
            try:
                found = await asking
            except NotFound:
                continue  # the liar was evicted for good: that is a fair answer too
            assert found.record.encoded == good.encoded


# ---- two meshes


async def test_nodes_of_two_meshes_never_exchange_a_byte(make_node: MakeNode) -> None:
    """Each is told where the other is; a tap between them sees what either says in answer."""
    one, two = await make_node(mesh="one"), await make_node(mesh="two")
    said = {"one": 0, "two": 0}
    async with bare_socket() as to_one, bare_socket() as to_two:

        def forward(via: Socket, node: Node, name: str) -> Reply:
            place = node.record.endpoints[0].addr

            def pass_on(data: bytes, source: Addr) -> list[bytes]:
                if source == place:
                    said[name] += len(data)
                else:
                    via.send(data, place)
                return []

            return pass_on

        to_one.reply = forward(to_one, one, "one")
        to_two.reply = forward(to_two, two, "two")
        runtime_of(one).stack.add_seed(two.id, [to_two.addr], time.monotonic())
        runtime_of(two).stack.add_seed(one.id, [to_one.addr], time.monotonic())
        dials = await asyncio.gather(
            *(wait_for(a.connect(b.id), 8) for a, b in ((one, two), (two, one))), return_exceptions=True
        )
        assert all(isinstance(error, MeshError) for error in dials)
        assert to_one.received, "the other mesh did knock"
        assert to_two.received
        assert said == {"one": 0, "two": 0}
        for node in (one, two):
            assert node.peers() == []
            assert runtime_of(node).stack.dht.contacts() == []
            assert counters(node)["knock_box"] > 0
            assert counters(node)["seal_box"] > 0
