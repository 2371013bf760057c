"""Live streams through moves on real sockets, by ``rebind``; the namespace tests move for real."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from typing import Any

import pytest

from meshnode import Node
from meshnode.base.path_reason import PathReason
from meshnode.runtime import sockets
from meshnode.sdk.node import runtime_of
from meshnode.stack.reception import Run
from tests.conftest import MakeNode, echo
from tests.given_time import GivenTime, wait_for, within

PLACES = itertools.count(2)


async def _place(node: Node) -> None:
    await node.rebind(f"127.0.3.{next(PLACES)}:0")


@pytest.mark.parametrize("mover", ["dialler", "listener", "both"])
async def test_stream_survives_when_ends_move(make_node: MakeNode, mover: str) -> None:
    seed = await make_node(seed_role=True)
    listener, dialler = await make_node(seed=seed), await make_node(seed=seed)
    listener.serve("echo", echo, allow=["any"])
    reader, writer = await dialler.open(listener.id, "echo")
    gaps: list[float] = []
    received = 0

    async def write() -> None:
        for number in range(300):
            writer.write(number.to_bytes(8, "big"))
            await asyncio.sleep(0.01)

    async def read() -> None:
        nonlocal received
        clock = GivenTime()
        last = clock.seconds
        for number in range(300):
            assert int.from_bytes(await reader.readexactly(8), "big") == number
            now = clock.seconds
            gaps.append(now - last)
            last = now
            received += 1

    async with within(20), asyncio.TaskGroup() as group:
        group.create_task(write())
        group.create_task(read())
        for _ in range(3):
            await asyncio.sleep(0.6)
            movers = [n for n, name in ((dialler, "dialler"), (listener, "listener")) if mover in (name, "both")]
            await asyncio.gather(*(_place(node) for node in movers))
    assert received == 300
    assert max(gaps) < 1.0, "loose on purpose: the figures are measured in bench/"


async def test_a_move_to_another_port_of_the_same_address_goes_on(make_node: MakeNode) -> None:
    listener = await make_node()
    dialler = await make_node(seed=listener)
    listener.serve("echo", echo, allow=["any"])
    reader, writer = await dialler.open(listener.id, "echo")
    for number in range(4):
        await dialler.rebind()
        writer.write(b"%d" % number)
        assert await wait_for(reader.readexactly(1), 5) == b"%d" % number


async def test_what_waits_at_the_port_that_a_node_leaves_is_taken(make_node: MakeNode) -> None:
    runtime = runtime_of(await make_node())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for _ in range(20):
            other.sendto(b"\x40" + bytes(30), (runtime.sockets.local.host, runtime.sockets.local.port))
        assert runtime.metrics.counters.get("drop_no_connection") is None, "nothing was read in this turn of the loop"
        runtime.rebind()
    assert runtime.metrics.counters["drop_no_connection"] == 20


async def test_an_echo_is_waited_for_as_long_as_the_path_takes(make_node: MakeNode) -> None:
    loop = asyncio.get_running_loop()
    listener = await make_node(gossip=False)
    udp = runtime_of(listener).sockets.udp
    take = udp._on_batch

    def take_late(runs: list[Run]) -> None:
        loop.call_later(0.3, take, runs)

    udp._on_batch = take_late
    dialler = await make_node(seed=listener, gossip=False)
    for _ in range(3):
        found = await wait_for(dialler.ping(listener.id, timeout=0.05), 20)
        assert found.rtt is not None
        assert found.rtt >= 0.3


class _Destroyed:
    """A UDP socket that the kernel has destroyed; ``taken_by`` has its port as soon as it is closed."""

    def __init__(self, sock: Any, taken_by: socket.socket | None = None) -> None:
        self._sock, self._taken_by = sock, taken_by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendto(self, *args: object) -> None:
        """Tell that there is no such socket any more."""
        raise OSError(errno.ECONNABORTED, "Software caused connection abort")

    sendmsg = sendto

    def close(self) -> None:
        """Close it."""
        name = self._sock.getsockname()
        self._sock.close()
        if self._taken_by is not None:
            self._taken_by.bind(name)


async def test_a_node_whose_socket_the_system_ends_opens_it_again_where_it_was(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "REOPEN_S", 0.05)
    listener = await make_node()
    dialler = await make_node(seed=listener)
    listener.serve("echo", echo, allow=["any"])
    reader, writer = await dialler.open(listener.id, "echo")
    for number, node in enumerate((dialler, listener, dialler, listener)):
        runtime = runtime_of(node)
        udp, local = runtime.sockets.udp, runtime.sockets.local
        assert udp._socket is not None
        if number < 2:
            udp._socket = _Destroyed(udp._socket)  # type: ignore[assignment]
        else:
            os.close(udp._socket.fileno())
            udp.send(local, [b"x"])  # at once: the number is free for other files
        writer.write(b"%d" % number)
        assert await wait_for(reader.readexactly(1), 10) == b"%d" % number
        assert runtime.sockets.local == local == udp.local
        assert runtime.metrics.counters["udp_ended"] == number // 2 + 1


@pytest.mark.parametrize("chosen", [True, False])
async def test_where_the_port_was_taken_meanwhile_another_is_opened_or_the_configured_one_waited_for(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chosen: bool
) -> None:
    monkeypatch.setattr(sockets, "REOPEN_S", 0.05)
    listener = await make_node()
    dialler = await make_node(seed=listener)
    listener.serve("echo", echo, allow=["any"])
    reader, writer = await dialler.open(listener.id, "echo")
    mine = runtime_of(dialler).sockets
    mine._chosen, local = chosen, mine.local
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        mine.udp._socket = _Destroyed(mine.udp._socket, other)  # type: ignore[assignment]
        writer.write(b"1")
        if chosen:
            assert await wait_for(reader.readexactly(1), 10) == b"1"
        else:
            async with within(10):
                while "cannot be opened again yet" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    if not chosen:
        assert await wait_for(reader.readexactly(1), 10) == b"1"
        assert caplog.text.count("cannot be opened again yet") == 1
    assert (mine.local == local) is not chosen
    assert mine._chosen is chosen


async def test_extra_sockets_are_opened_while_the_nodes_own_is_not_there(make_node: MakeNode) -> None:
    mine = runtime_of(await make_node()).sockets
    mine.udp._socket = _Destroyed(mine.udp._socket)  # type: ignore[assignment]
    assert not mine.udp.send(mine.local, [b"x"])
    assert mine.udp._socket is None
    sides = mine.open_sides(2)
    assert len(sides) == 2
    for side in sides:
        mine.close_side(side)


async def test_a_host_that_has_slept_is_heard_at_once_and_not_with_its_next_keepalive(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    await node.ping(seed.id)
    runtime = runtime_of(node)
    paths = runtime.stack.sessions[seed.id].paths
    runtime._on_clock_set(2.5)  # NTP
    await asyncio.sleep(0)
    assert not any(each.reason is PathReason.MOVED for each in paths.history)
    runtime._on_clock_set(3_600.0)
    async with within(5):
        while not any(each.reason is PathReason.MOVED and not each.is_open for each in paths.history):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
