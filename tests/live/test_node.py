"""Nodes on real loopback sockets: connecting, serving, refusing, restarting."""

from __future__ import annotations

import asyncio
import math
import socket
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode import Identity
from meshnode.errors import (
    AlreadyRunning,
    ConnectionLost,
    NoPathError,
    NotFound,
    PeerIdentityError,
    PeerRestarted,
    PolicyDenied,
    ServiceNotFound,
)
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, echo
from tests.engines import every_engine
from tests.given_time import wait_for, within


async def test_a_stream_carries_bytes_both_ways_and_ends_cleanly(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    listener, dialler = await make_node(seed=seed), await make_node(seed=seed)
    listener.serve("echo", echo, allow=["any"])
    reader, writer = await dialler.open(listener.id, "echo")
    payload = bytes(range(256)) * 4096
    writer.write(payload)
    writer.write_eof()
    assert await reader.read() == payload
    assert reader.at_eof()


@every_engine
@pytest.mark.parametrize("seconds", [math.inf, 1e300])
async def test_a_connection_that_is_never_given_up_carries_streams(
    make_node: MakeNode, engine: str, seconds: float
) -> None:
    there = await make_node(engine=engine, idle_timeout=seconds)
    here = await make_node(seed=there, engine=engine, idle_timeout=seconds)
    there.serve("echo", echo, allow="any")
    async with await wait_for(here.open(there.id, "echo"), 10) as (reader, writer):
        writer.write(b"hello")
        assert await wait_for(reader.readexactly(5), 10) == b"hello"


async def test_a_service_that_allows_no_peer_refuses_with_policy_denied(make_node: MakeNode) -> None:
    listener = await make_node()
    dialler = await make_node(seed=listener)
    listener.serve("private", echo)
    with pytest.raises(PolicyDenied):
        await dialler.open(listener.id, "private")


async def test_a_service_that_does_not_exist_is_named_as_such(make_node: MakeNode) -> None:
    listener = await make_node()
    dialler = await make_node(seed=listener)
    with pytest.raises(ServiceNotFound):
        await dialler.open(listener.id, "nothing")


async def test_a_node_that_admits_only_others_refuses_with_a_reason(make_node: MakeNode) -> None:
    listener = await make_node(allow=(str(Identity.generate().id),))
    dialler = await make_node(seed=listener)
    with pytest.raises(PolicyDenied):
        await dialler.connect(listener.id)


async def test_an_unknown_id_is_not_found_and_not_a_hang(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    with pytest.raises(NotFound):
        await wait_for(node.connect(Identity.generate().id), 8)


async def test_another_key_at_the_dialled_address_is_a_named_error_and_not_a_hang(make_node: MakeNode) -> None:
    other = await make_node()
    wrong = Identity.generate().id
    dialler = await make_node(seeds=(f"{wrong}@{other.record.endpoints[0]}",))
    with pytest.raises((NoPathError, PeerIdentityError)) as caught:
        await wait_for(dialler.connect(wrong), 8)
    assert caught.value.hint
    assert other.status()["counters"].get("knock_box", 0) > 0, "the other node counted the knock that was not for it"


async def test_both_dial_at_once_and_one_connection_lives(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True, gossip=False)  # which would connect them before
    one, other = await make_node(seed=seed, gossip=False), await make_node(seed=seed, gossip=False)
    for node in (one, other):
        node.serve("echo", echo, allow=["any"])
    await one.resolve(other.id)
    await other.resolve(one.id)
    streams = await asyncio.gather(*(a.open(b.id, "echo") for a, b in ((one, other), (other, one)) for _ in range(4)))
    for number, (reader, writer) in enumerate(streams):
        writer.write(b"%04d" % number)
        assert await reader.readexactly(4) == b"%04d" % number
    seen = [[p for p in a.peers() if p["id"] == str(b.id)] for a, b in ((one, other), (other, one))]
    assert [len(found) for found in seen] == [1, 1]
    assert seen[0][0]["dialled"] == (one.id < other.id), "the smaller id's dial lives"


async def test_a_restarted_peer_is_noticed_at_once(make_node: MakeNode, tmp_path) -> None:  # type: ignore[no-untyped-def]
    listener = await make_node(home=tmp_path / "again")
    address = str(listener.record.endpoints[0])
    listener.serve("echo", echo, allow=["any"])
    dialler = await make_node(seed=listener)
    reader, writer = await dialler.open(listener.id, "echo")
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    runtime_of(listener).sockets.udp.close()  # as kill -9: not a word to any peer
    runtime_of(listener).state.lock.release()
    again = await make_node(home=tmp_path / "again", listen=address)
    assert again.id == listener.id
    writer.write(b"are you there?")
    with pytest.raises((PeerRestarted, ConnectionLost)):
        await wait_for(reader.readexactly(1), 3)


async def test_one_home_runs_one_node(make_node: MakeNode, tmp_path) -> None:  # type: ignore[no-untyped-def]
    await make_node(home=tmp_path / "one")
    with pytest.raises(AlreadyRunning):
        await make_node(home=tmp_path / "one")


async def test_a_slow_reader_holds_the_sender_back(make_node: MakeNode) -> None:
    listener = await make_node()
    dialler = await make_node(seed=listener)
    release = asyncio.Event()
    total = 0

    async def slow(reader, writer, peer) -> None:  # type: ignore[no-untyped-def]
        nonlocal total
        await release.wait()
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.write(b"done")

    listener.serve("slow", slow, allow=["any"])
    reader, writer = await dialler.open(listener.id, "slow")
    sent = 0
    chunk = bytes(1 << 18)
    with pytest.raises(TimeoutError):
        async with within(1.5):
            while True:
                writer.write(chunk)
                sent += len(chunk)
                await writer.drain()
    assert sent < 8 << 20, "a reader that reads nothing accepts a few windows at most"
    release.set()
    writer.write_eof()
    assert await reader.read() == b"done"
    assert total == sent


async def test_events_end_when_the_node_is_closed(make_node: MakeNode) -> None:
    node = await make_node()
    seen = []

    async def watch() -> None:
        async for event in node.events():
            seen.append(event.kind)

    task = asyncio.create_task(watch())
    friend = await make_node(seed=node)
    assert (await friend.ping(node.id)).rtt is not None
    await node.close()
    await wait_for(task, 2)
    assert "connected" in seen


async def test_the_old_call_for_any_instance_works_and_warns(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    other = await make_node(seed=seed)
    seed.serve("echo", echo, allow=["any"])
    with pytest.warns(DeprecationWarning, match="open_any"):
        reader, writer = await other.open("echo")
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"


async def test_a_node_that_is_not_started_or_is_closed_says_so(tmp_path: Path) -> None:
    node = meshnode.Node(meshnode.Config(home=tmp_path / "a", mdns=False, port_mapping=False, listen="127.0.0.1:0"))
    with pytest.raises(meshnode.NotRunning):
        _ = node.id
    with pytest.raises(meshnode.NotRunning):
        await node.open("laptop", "echo")
    async with node:
        assert not node.is_closed
    assert node.is_closed
    with pytest.raises(meshnode.NodeClosed):
        await node.open("laptop", "echo")
    with pytest.raises(meshnode.NodeClosed):
        await node.start()


async def test_a_service_that_cannot_be_announced_leaves_no_node_behind(tmp_path: Path) -> None:
    config = meshnode.Config(home=tmp_path / "a", mdns=False, port_mapping=False, listen="127.0.0.1:0")
    broken = meshnode.Node(config)
    broken.serve("echo", echo, allow=["any"], meta={"": "a name is missing"})
    with pytest.raises(meshnode.ConfigError):
        await broken.start()
    async with meshnode.Node(config) as node:  # the home and its lock are free again
        assert node.record.endpoints


async def test_a_wrong_argument_is_an_error_of_ours_and_a_value_error(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    other = await make_node(seed=seed)
    connection = await other.connect(seed.id)
    for service in ("", "x" * 256):
        with pytest.raises(meshnode.ConfigError, match="255"):
            await connection.open(service)
        with pytest.raises(ValueError, match="255"):
            await other.open(seed.id, service)
    topic = await other.join("news")
    with pytest.raises(meshnode.ConfigError, match="3072"):
        await topic.publish(bytes(3073))
    assert await topic.publish(bytes(3072)) == 1


async def test_a_start_that_fails_gives_back_the_home_and_the_ports(make_node: MakeNode, tmp_path: Path) -> None:
    first = await make_node()
    quiet: dict[str, Any] = {"home": tmp_path / "again", "mdns": False, "port_mapping": False}
    taken = meshnode.Node(meshnode.Config(**quiet, listen=str(first.record.endpoints[0])))
    with pytest.raises(meshnode.AddressInUse):
        await taken.start()
    free = f"127.0.0.1:{_free_port()}"
    wrong = meshnode.Node(meshnode.Config(**quiet, listen=free, relay="on", engine="none"))
    with pytest.raises(meshnode.ConfigError):
        await wrong.start()
    async with meshnode.Node(meshnode.Config(**quiet, listen=free, relay="on")) as node:
        assert "wss" in node.record.capabilities, "the TCP port is free again too"


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
