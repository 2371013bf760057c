"""Services, names and topics on real loopback sockets, and with real processes that are killed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meshnode import Config, Node
from meshnode.directory.announcement import Instance
from meshnode.errors import ConfigError, ConnectionLost, InvalidId, NameChanged, NotFound, PolicyDenied
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, echo
from tests.given_time import within


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until ``condition()`` holds."""
    async with within(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _found(node: Node, name: str, count: int) -> list[Instance]:
    await until(lambda: len(node._life.running().failover.instances(name)) == count)
    return await node.find(name)


async def _call(node: Node, name: str, text: bytes = b"hello") -> bytes:
    reader, writer = await node.open_any(name, trusted="any")
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def says(text: bytes) -> Any:
    async def handler(reader: Any, writer: Any, peer: Any) -> None:
        await reader.read()
        writer.write(text)

    return handler


async def test_a_service_is_found_by_its_name_alone(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    a, b, client = [await make_node(seed=seed) for _ in range(3)]
    a.serve("db", says(b"a"), allow=["any"], meta={"zone": "x"})
    assert await _call(client, "db") == b"a"
    (instance,) = await client.find("db")
    assert (instance.node, dict(instance.meta), instance.state) == (a.id, {"zone": "x"}, "up")
    b.serve("db", says(b"b"), allow=["any"])
    await _found(client, "db", 2)
    runtime_of(client).stack.registry.rtt = lambda peer: 0.001  # type: ignore[method-assign, union-attr]
    assert {await _call(client, "db") for _ in range(30)} == {b"a", b"b"}, "equally near instances share the calls"


async def test_nobodys_service_is_not_announced_and_a_private_one_neither(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    node.serve("unannounced", echo)
    node.serve("private", echo, allow=["any"], announce=False)
    node.serve("some", echo, allow=[str(seed.id)])
    (instance,) = await seed.find("some")
    assert instance.offer.restricted
    assert await seed.find("unannounced") == await seed.find("private") == []
    _, writer = await seed.open(node.id, "private")
    writer.close()
    with pytest.raises(NotFound):
        await seed.open_any("private")
    with pytest.raises(ConfigError):
        node.serve("two words", echo, allow=["any"], announce=True)


async def test_time_in_which_this_process_did_not_run_is_not_waited_for_a_name(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.sdk.waits.FIND_YOUNG_S", 0.01)
    node = await make_node()
    finding = asyncio.create_task(node.find("db"))
    began = time.monotonic()
    await asyncio.sleep(0)
    runtime_of(node).stack.context.late_s += 0.3
    assert await finding == []
    assert time.monotonic() - began > 0.3


async def test_an_instance_that_refuses_is_passed_over_and_when_all_refuse_it_is_said(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    a, b = await make_node(seed=seed), await make_node(seed=seed)
    a.serve("db", says(b"a"), allow=[str(b.id)])
    await _found(seed, "db", 1)
    with pytest.raises(PolicyDenied):
        await seed.open_any("db")
    b.serve("db", says(b"b"), allow=["any"])
    await _found(seed, "db", 2)
    assert [await _call(seed, "db") for _ in range(5)] == [b"b"] * 5


async def test_a_failing_instance_is_tried_last_and_a_withdrawn_one_never(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    a, b = await make_node(seed=seed), await make_node(seed=seed)
    services = [node.serve("db", says(text), allow=["any"]) for node, text in ((a, b"a"), (b, b"b"))]
    await _found(seed, "db", 2)
    services[0].update(healthy=False)
    await until(lambda: any(i.state == "failing" for i in seed._life.running().failover.instances("db")))
    assert [await _call(seed, "db") for _ in range(5)] == [b"b"] * 5
    services[1].close()
    await _found(seed, "db", 1)
    assert await _call(seed, "db") == b"a"


async def test_of_two_instances_that_accept_at_the_same_moment_one_serves_and_the_other_is_told_to_stop(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = await make_node(seed_role=True)
    nodes = [await make_node(seed=seed) for _ in range(2)]
    serving: dict[Any, bool] = {}

    def at(node: Node) -> Any:
        async def handler(reader: Any, writer: Any, peer: Any) -> None:
            serving[node.id] = True
            try:
                await reader.read()
            finally:
                serving[node.id] = False

        return handler

    for node in nodes:
        node.serve("db", at(node), allow=["any"])
    await _found(seed, "db", 2)
    accepted: list[Any] = []
    both = asyncio.Event()

    failover = seed._life.running().failover
    open_one = failover.open_at

    async def open_at(peer: Any, name: str) -> Any:
        opened = await open_one(peer, name)
        accepted.append(opened[1])
        if len(accepted) == 2:
            both.set()
        await both.wait()  # so both attempts are over in the same step of the event loop
        return opened

    monkeypatch.setattr(failover, "open_at", open_at)
    _, writer = await seed.open_any("db", trusted="any")
    assert {each.peer for each in accepted} == {node.id for node in nodes}
    (other,) = (node.id for node in nodes if node.id != writer.peer)
    await until(lambda: serving.get(other) is False)
    assert serving[writer.peer], "it waits for what the caller says"
    writer.close()


async def test_a_node_is_reached_by_its_name_and_the_name_stays_its(make_node: MakeNode, caplog: Any) -> None:
    seed = await make_node(seed_role=True)
    first = await make_node(seed=seed, name="laptop")
    first.serve("echo", echo, allow=["any"])
    assert (await seed.ping("laptop")).rtt is not None
    assert (await seed.resolve("laptop.mesh")).record.id == first.id
    assert (await seed.resolve(f"{first.id}.mesh")).record.id == first.id
    _, writer = await seed.open("laptop", "echo")
    writer.close()
    conflicts: list[Any] = []

    async def listen() -> None:
        async for event in seed.events():
            if event.kind == "name_conflict":
                conflicts.append(event.peer)

    task = asyncio.create_task(listen())
    with caplog.at_level(logging.WARNING, "meshnode.names"):
        rival = await make_node(seed=seed, name="laptop")
        await until(lambda: conflicts)
    assert conflicts == [rival.id]
    assert (await seed.resolve("laptop")).record.id == first.id
    await first.close()
    with pytest.raises(NameChanged):
        await until_raises(seed, "laptop")
    assert runtime_of(seed).names.forget("laptop")  # type: ignore[union-attr]
    assert (await seed.resolve("laptop")).record.id == rival.id
    task.cancel()
    with pytest.raises(NotFound):
        await seed.ping("no-node-of-that-name")
    with pytest.raises(InvalidId):
        await seed.ping("not/a/name")


async def until_raises(node: Node, name: str) -> None:
    async with within(10):
        while True:
            with suppress(NotFound):  # the pin is known before the claims are
                await node.resolve(name)
            await asyncio.sleep(0.05)


async def test_what_names_mean_outlives_a_restart(make_node: MakeNode, tmp_path: Path) -> None:
    seed = await make_node(seed_role=True)
    first = await make_node(seed=seed, name="laptop")
    user = await make_node(seed=seed, home=tmp_path / "user")
    assert (await user.resolve("laptop")).record.id == first.id
    await user.close()
    await first.close()
    await make_node(seed=seed, name="laptop")
    again = await make_node(seed=seed, home=tmp_path / "user")
    with pytest.raises(NameChanged):
        await until_raises(again, "laptop")


async def test_events_tell_of_members_and_services(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    told: list[tuple[str, Any, str]] = []

    async def listen() -> None:
        async for event in seed.events():
            told.append((event.kind, event.peer, event.service or event.detail))

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    node = await make_node(seed=seed)
    service = node.serve("db", echo, allow=["any"])
    await until(lambda: ("service_up", node.id, "db") in told)
    assert ("member", node.id, "alive") in told
    service.close()
    await until(lambda: ("service_down", node.id, "db") in told)
    await node.close()
    await until(lambda: ("member", node.id, "left") in told)
    task.cancel()


async def test_a_topic_carries_messages_between_nodes(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    nodes = [await make_node(seed=seed) for _ in range(4)]
    topics = [await node.join("news") for node in nodes]
    await until(lambda: all(topic.links == 3 for topic in topics))  # with one link each they may be two pairs yet
    for i in range(20):
        await topics[0].publish(b"%d" % i)
    for topic in topics[1:]:
        async with within(10):
            got = [(await anext(topic)) for _ in range(20)]
        assert [m.data for m in got] == [b"%d" % i for i in range(20)]
        assert {m.sender for m in got} == {nodes[0].id}
        assert topic.lost == 0
    late = await seed.join("news", replay=3)
    async with within(10):
        assert [(await anext(late)).data for _ in range(3)] == [b"17", b"18", b"19"]
    await late.leave()
    with pytest.raises(StopAsyncIteration):
        await anext(late)


async def test_a_reader_that_does_not_read_loses_the_oldest_and_no_other_reader_does(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    slow, quick = await node.join("news", limit=5), await node.join("news")
    topic = await seed.join("news")
    await until(lambda: topic.links)
    for i in range(50):
        await topic.publish(b"%d" % i)
    async with within(10):
        assert [(await anext(quick)).data for _ in range(50)] == [b"%d" % i for i in range(50)]
    assert [(await anext(slow)).data for _ in range(5)] == [b"%d" % i for i in range(45, 50)]
    assert (slow.lost, quick.lost) == (45, 0)


async def test_a_publisher_that_is_too_fast_waits(make_node: MakeNode) -> None:
    node = await make_node()
    topic = await node.join("news")
    began = asyncio.get_running_loop().time()
    for _ in range(450):
        await topic.publish(b"x")
    assert asyncio.get_running_loop().time() - began > 0.4
    with pytest.raises(ValueError, match="3072"):
        await topic.publish(b"x" * 3073)


async def test_a_stream_to_a_service_ends_when_its_instance_is_silent_and_another_is_not(
    make_node: MakeNode,
) -> None:
    seed = await make_node(seed_role=True)
    a, b, client = [await make_node(seed=seed) for _ in range(3)]
    for node in (a, b):
        node.serve("db", echo, allow=["any"])
    await _found(client, "db", 2)
    reader, writer = await client.open_any("db", trusted="any")
    served = {a.id: a, b.id: b}[writer.peer]
    pinned = await client.open(served.id, "db")
    runtime_of(served).sockets.udp.close()  # as kill -9 looks from outside
    counter = itertools.count()

    async def talk() -> None:
        while True:
            writer.write(next(counter).to_bytes(8, "big"))
            pinned[1].write(b"x")
            await reader.read(64)
            await asyncio.sleep(0.01)

    began = asyncio.get_running_loop().time()
    with pytest.raises(ConnectionLost):
        async with within(5):
            await talk()
    assert asyncio.get_running_loop().time() - began < 2.5
    assert not pinned[1].is_closing(), "a stream to a node waits for it"
    assert (await _call(client, "db")) == b"hello"


async def test_a_service_that_is_served_before_the_start_is_announced_at_the_start(
    make_node: MakeNode, tmp_path: Path
) -> None:
    seed = await make_node(seed_role=True)
    where = f"{seed.id}@{seed.record.endpoints[0]}"
    node = Node(Config(home=tmp_path / "early", listen="127.0.0.1:0", mdns=False, seeds=(where,)))
    node.serve("gone", echo, allow=["any"]).close()
    node.serve("early", echo, allow=["any"])
    async with node:
        assert [i.node for i in await seed.find("early")] == [node.id]
