"""Datagrams between real nodes on loopback: both engines, moves, policy, ends, and what refuses."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from meshnode import ConfigError, Datagrams, Node, NodeId, StreamMisused
from meshnode.errors import (
    ConnectionLost,
    DatagramsUnsupported,
    FlowClosed,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
)
from meshnode.quic.flows import UNKNOWN_FLOW
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, echo
from tests.engines import every_engine
from tests.given_time import wait_for, within

PLACES = itertools.count(2)


async def echo_datagrams(flow: Datagrams, peer: NodeId) -> None:
    """Send back what comes."""
    async for data in flow:
        flow.send(data)


async def _pair(make_node: MakeNode, **settings: str) -> tuple[Node, Node]:
    listener = await make_node(**settings)
    return listener, await make_node(seed=listener, **settings)


async def _receive(flow: Datagrams) -> bytes:
    return await wait_for(flow.receive(), 5)


@every_engine
async def test_datagrams_go_both_ways_between_two_nodes(make_node: MakeNode, engine: str) -> None:
    listener, dialler = await _pair(make_node, engine=engine)
    service = listener.serve_datagrams("echo", echo_datagrams, allow=["any"])
    async with service, await dialler.datagrams(listener.id, "echo") as flow:
        assert (flow.peer, flow.service, flow.max_size, flow.is_closed) == (listener.id, "echo", 1_160, False)
        for data in (b"", b"x", bytes(range(256)) * 4, bytes(flow.max_size), bytearray(b"y"), memoryview(b"z")):
            assert flow.send(data)
            assert await _receive(flow) == bytes(data)
        with pytest.raises(ValueError, match="at most 1160 bytes, not 1161"):
            flow.send(bytes(flow.max_size + 1))
        with pytest.raises(TypeError):
            flow.send("text")  # type: ignore[arg-type]
        assert flow.unsent == flow.dropped == 0
    assert flow.is_closed
    with pytest.raises(FlowClosed):
        flow.send(b"x")
    with pytest.raises(FlowClosed):
        await flow.receive()


@pytest.mark.parametrize("mover", ["dialler", "listener", "both"])
async def test_a_flow_survives_when_ends_move_and_loses_next_to_nothing(make_node: MakeNode, mover: str) -> None:
    seed = await make_node(seed_role=True)
    listener, dialler = await make_node(seed=seed), await make_node(seed=seed)
    listener.serve_datagrams("echo", echo_datagrams, allow=["any"])
    found: Counter[int] = Counter()
    async with within(30), await dialler.datagrams(listener.id, "echo") as flow, asyncio.TaskGroup() as group:

        async def read() -> None:
            async for data in flow:
                found[int.from_bytes(data, "big")] += 1

        reading = group.create_task(read())
        for number in range(300):
            flow.send(number.to_bytes(1_000, "big"))
            if number % 100 == 50:
                movers = [n for n, name in ((dialler, "dialler"), (listener, "listener")) if mover in (name, "both")]
                await asyncio.gather(*(node.rebind(f"127.0.4.{next(PLACES)}:0") for node in movers))
            await asyncio.sleep(0.005)
        while 299 not in found:
            flow.send((299).to_bytes(1_000, "big"))
            await asyncio.sleep(0.05)
        reading.cancel()
    assert max(count for number, count in found.items() if number < 299) == 1
    assert len(found) >= 200, "of 300: a second of silence would cost 200"


async def test_a_service_is_of_streams_or_of_datagrams(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve_datagrams("flows", echo_datagrams, allow=["any"])
    listener.serve("streams", echo, allow=["any"])
    with pytest.raises(ServiceNotFound, match="no service 'streams'"):
        await dialler.datagrams(listener.id, "streams")
    with pytest.raises(ServiceNotFound, match="no service 'flows'"):
        await dialler.open(listener.id, "flows")
    with pytest.raises(ServiceNotFound, match="no service 'none'"):
        await dialler.datagrams(listener.id, "none")
    with pytest.raises(ConfigError, match="exists already"):
        listener.serve_datagrams("streams", echo_datagrams)
    with pytest.raises(ConfigError, match="at most 249 bytes"):
        await dialler.datagrams(listener.id, "x" * 250)
    with pytest.raises(ConfigError, match="a flow and a peer"):
        listener.serve_datagrams("wrong", echo)  # type: ignore[arg-type]


async def test_no_node_may_use_it_unless_named_and_a_change_of_policy_cuts_it(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve_datagrams("closed", echo_datagrams)
    with pytest.raises(PolicyDenied):
        await dialler.datagrams(listener.id, "closed")
    listener.serve_datagrams("open", echo_datagrams, allow=[dialler.id])
    flow = await dialler.datagrams(listener.id, "open")
    flow.send(b"x")
    assert await _receive(flow) == b"x"
    guard = runtime_of(listener).guard
    guard.lists.services["open"] = guard.lists.services["closed"]
    guard.changed()
    with pytest.raises(PolicyDenied):
        await _receive(flow)
    assert flow.is_closed
    with pytest.raises(PolicyDenied):
        flow.send(b"x")
    assert len(runtime_of(listener).stack.sessions[dialler.id].connections()[0].streams.flows) == 0


async def test_the_end_of_a_handler_is_a_clean_end_and_its_error_is_not(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)

    async def answer_once(flow: Datagrams, peer: NodeId) -> None:
        if await flow.receive() == b"fail":
            raise RuntimeError("of the handler's own")
        flow.send(b"bye")

    listener.serve_datagrams("once", answer_once, allow=["any"])
    async with await dialler.datagrams(listener.id, "once") as flow:
        flow.send(b"hello")
        assert [data async for data in flow] == [b"bye"]
        with pytest.raises(FlowClosed):
            await flow.receive()
    async with await dialler.datagrams(listener.id, "once") as flow:
        flow.send(b"fail")
        with pytest.raises(ConnectionLost):
            await _receive(flow)


async def test_the_opener_ends_a_handler(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    ends: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def note(flow: Datagrams, peer: NodeId) -> None:
        try:
            async for _ in flow:
                pass
        except Exception as error:
            ends.put_nowait(error)
            raise
        ends.put_nowait(None)

    listener.serve_datagrams("note", note, allow=["any"])
    (await dialler.datagrams(listener.id, "note")).close()
    assert await wait_for(ends.get(), 5) is None
    (await dialler.datagrams(listener.id, "note")).reset()
    assert isinstance(await wait_for(ends.get(), 5), ConnectionLost)
    flow = await dialler.datagrams(listener.id, "note")
    await dialler.close()
    assert isinstance(await wait_for(ends.get(), 5), ConnectionLost)
    with pytest.raises(ConnectionLost):
        await flow.receive()


async def test_one_coroutine_receives_and_a_cancelled_one_leaves_the_flow_usable(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve_datagrams("echo", echo_datagrams, allow=["any"])
    async with await dialler.datagrams(listener.id, "echo") as flow:
        first = asyncio.create_task(flow.receive())
        await asyncio.sleep(0)
        with pytest.raises(StreamMisused, match="receive"):
            await flow.receive()
        first.cancel()
        await asyncio.wait([first])
        flow.send(b"x")
        assert await _receive(flow) == b"x"


async def test_a_peer_of_an_older_version_is_told_from_one_that_refuses(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, dialler = await _pair(make_node, engine="aioquic")
    listener.serve_datagrams("echo", echo_datagrams, allow=["any"])
    connection = await dialler.connect(listener.id)
    monkeypatch.setattr(connection._link.engine._quic, "_remote_max_datagram_frame_size", None)  # type: ignore[attr-defined]
    with pytest.raises(DatagramsUnsupported, match="a version of meshnode without datagrams"):
        await dialler.datagrams(listener.id, "echo")
    monkeypatch.undo()
    engine = runtime_of(listener).stack.sessions[dialler.id].connections()[0].engine
    monkeypatch.setattr(engine._quic, "_remote_max_datagram_frame_size", None)  # type: ignore[attr-defined]
    with pytest.raises(ServiceUnavailable):  # one that opens a flow and cannot be answered
        await dialler.datagrams(listener.id, "echo")


async def test_a_flow_that_is_dropped_unclosed_warns_and_is_reset(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    over = asyncio.Event()

    async def wait(flow: Datagrams, peer: NodeId) -> None:
        try:
            await flow.receive()
        finally:
            over.set()

    listener.serve_datagrams("wait", wait, allow=["any"])
    flow = await dialler.datagrams(listener.id, "wait")
    forget = [flow]
    del flow
    with pytest.warns(ResourceWarning, match="unclosed <Datagrams of 'wait'"):
        forget.clear()
    await wait_for(over.wait(), 5)


async def test_what_comes_late_or_for_no_flow_is_counted(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve_datagrams("echo", echo_datagrams, allow=["any"])
    async with await dialler.datagrams(listener.id, "echo") as flow:
        link = runtime_of(dialler).stack.sessions[listener.id].connections()[0]
        link.engine.datagrams.send(b"\x7f\xffof no flow")
        flow.send(b"x")
        assert await _receive(flow) == b"x"
    assert runtime_of(listener).metrics.counters[UNKNOWN_FLOW] == 1


async def test_a_reader_that_is_too_slow_gets_the_newest(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    gate, seen = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def slow(flow: Datagrams, peer: NodeId) -> None:
        await gate.wait()
        seen.set_result((flow.dropped, int.from_bytes(await flow.receive(), "big")))

    listener.serve_datagrams("slow", slow, allow=["any"])
    async with within(30), await dialler.datagrams(listener.id, "slow") as flow:
        for number in range(3_000):
            if not flow.send(number.to_bytes(1_000, "big")):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        gate.set()
        dropped, oldest = await seen
    assert 0 < dropped <= oldest
    assert flow.unsent > 0
