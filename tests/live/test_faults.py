"""Exceptions where none is expected: a node counts them, logs one of each kind, and goes on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from meshnode.base import timers
from meshnode.base.timers import Timers
from meshnode.errors import ConnectionLost, HandshakeTimeout, NodeClosed, NoPathError
from meshnode.identity.node_id import NodeId
from meshnode.quic.seam import Engine
from meshnode.runtime import interfaces
from meshnode.runtime.files import HomeLock
from meshnode.runtime.interfaces import InterfaceWatcher
from meshnode.sdk.node import runtime_of
from meshnode.stack.component import Component
from meshnode.stack.session import Session
from tests.conftest import MakeNode, echo
from tests.given_time import wait_for, within


def _full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def _until(holds: Callable[[], bool]) -> None:
    async with within(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_tick_that_raises_is_followed_by_the_next(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = await make_node()
    runtime, ticks = runtime_of(node), 0
    monkeypatch.setattr("meshnode.runtime.driver.RETRY_S", 0.01)
    tick = runtime.stack.tick

    def failing(now: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks <= 3:
            _full()
        tick(now)

    monkeypatch.setattr(runtime.stack, "tick", failing)
    await _until(lambda: ticks >= 5)  # no packet comes: nothing but the timer drives it
    assert runtime.metrics.counters["faults"] == 3
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


async def test_a_dial_that_the_engine_cannot_begin_is_an_error_and_the_next_one_works(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await make_node(gossip=False, dht=False)
    here = await make_node(seed=there, gossip=False, dht=False)
    engines = runtime_of(here).stack.context.engines
    with monkeypatch.context() as broken:
        broken.setattr(type(engines), "dial", _full)
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="this node's own QUIC engine failed"):
                await wait_for(here.connect(there.id), 10)
    assert runtime_of(here).metrics.counters["faults"] >= 1
    assert (await wait_for(here.connect(there.id), 10)).peer == there.id


class _Broken:
    """An engine of which some methods raise."""

    def __init__(self, engine: Engine, methods: tuple[str, ...]) -> None:
        self._engine, self._methods = engine, methods

    def __getattr__(self, name: str) -> Any:
        return _full if name in self._methods else getattr(self._engine, name)


@pytest.mark.parametrize(
    "methods", [("transmit",), ("receive", "on_timer"), ("transmit", "on_timer", "abandon", "close")], ids=" ".join
)
async def test_a_dial_whose_engine_fails_later_on_ends_too(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...]
) -> None:
    there = await make_node(gossip=False, dht=False)
    here = await make_node(seed=there, gossip=False, dht=False)
    engines = type(runtime_of(here).stack.context.engines)
    dial = engines.dial
    with monkeypatch.context() as broken:
        broken.setattr("meshnode.stack.dialing.HANDSHAKE_TIMEOUT_S", 0.3)
        broken.setattr(engines, "dial", lambda *args: _Broken(dial(*args), methods))
        with pytest.raises((NoPathError, HandshakeTimeout)):
            await wait_for(here.connect(there.id), 10)
    assert (await wait_for(here.connect(there.id), 10)).peer == there.id


async def test_what_a_failing_engine_of_a_listener_has_begun_is_forgotten(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await make_node(gossip=False, dht=False)
    here = await make_node(seed=there, gossip=False, dht=False)
    engines, sessions = type(runtime_of(there).stack.context.engines), runtime_of(there).stack.sessions
    accept = engines.accept
    for broken_engine in (_full, lambda *args: _Broken(accept(*args), ("receive",))):
        with monkeypatch.context() as broken:
            broken.setattr("meshnode.stack.dialing.HANDSHAKE_TIMEOUT_S", 0.3)
            broken.setattr(engines, "accept", broken_engine)
            with pytest.raises(NoPathError):
                await wait_for(here.connect(there.id), 10)
        assert here.id not in sessions
    assert (await wait_for(here.connect(there.id), 10)).peer == there.id


async def test_a_node_whose_engine_fails_at_the_end_is_closed_and_what_reads_is_told(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow="any")
    reader, _ = await wait_for(here.open(there.id, "echo"), 10)
    reading = asyncio.ensure_future(reader.read(1))
    connection = runtime_of(here).stack.sessions[there.id].connection
    assert connection is not None
    monkeypatch.setattr(connection, "engine", _Broken(connection.engine, ("close", "transmit")))
    await wait_for(here.close(), 10)
    with pytest.raises(ConnectionLost):
        await wait_for(reading, 10)
    HomeLock(here.config.home_path).release()  # it is free


async def test_a_stream_that_cannot_be_served_is_reset_and_no_other(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await make_node(gossip=False, dht=False)
    here = await make_node(seed=there, gossip=False, dht=False)
    there.serve("echo", echo, allow="any")
    connection = await wait_for(here.connect(there.id), 10)
    with monkeypatch.context() as broken:
        broken.setattr(runtime_of(there).guard, "ask", _full)
        with pytest.raises(ConnectionLost):
            await wait_for(connection.open("echo"), 10)
    (await wait_for(connection.open("echo"), 10)).writer.close()


def test_a_caller_that_fails_keeps_no_other_from_a_connection() -> None:
    told: list[object] = []
    session = Session(NodeId(bytes(32)), Mock(), Timers(), lambda session, now: None)
    session.waiting += [told.append, _full, told.append]
    with pytest.raises(OSError, match="No space"):
        session.answer(NodeClosed("over"))
    assert len(told) == 2


async def test_a_timer_that_raises_stops_no_other_and_runs_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "RETRY_S", 0.02)
    runtime = runtime_of(await make_node())
    table, fired = runtime.stack.context.timers, []

    def once(now: float) -> None:
        fired.append("raising")
        if fired.count("raising") == 1:
            _full()

    table.at(0.0, once)
    table.at(0.0, lambda now: fired.append("other"))
    runtime.driver.arm()
    await _until(lambda: len(fired) == 3)
    assert fired == ["raising", "other", "raising"]


async def test_a_component_that_cannot_send_stops_no_other_and_is_asked_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.stack.stack.RETRY_S", 0.02)
    runtime, flushed = runtime_of(await make_node()), []

    class Part(Component):
        def __init__(self, name: str) -> None:
            self.name = name

        def flush(self, now: float) -> None:
            flushed.append(self.name)
            if self.name == "raising" and len(flushed) == 1:
                _full()

    runtime.stack.context.dirty.update({Part("raising"): None, Part("other"): None})
    runtime.driver.pump()
    assert flushed == ["raising", "other"]
    await _until(lambda: flushed[2:] == ["raising"])


async def test_a_connection_that_cannot_send_delays_no_other(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await make_node()
    one, other = await make_node(seed=hub), await make_node(seed=hub)
    assert (await one.ping(hub.id)).rtt is not None
    assert (await other.ping(hub.id)).rtt is not None
    sessions = runtime_of(hub).stack.sessions
    broken = sessions[one.id].connection
    assert broken is not None
    monkeypatch.setattr(broken, "transmit", _full)
    for _ in range(5):
        runtime_of(hub).stack.connections.touch(broken)
        assert (await other.ping(hub.id, timeout=0.5)).rtt is not None
    assert runtime_of(hub).metrics.counters["faults"] >= 1
    monkeypatch.undo()
    assert (await one.ping(hub.id)).rtt is not None


async def test_a_datagram_that_raises_takes_none_of_its_batch_along(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    runtime, seen = runtime_of(node), []

    def take(data: bytes, source: object, now: float) -> None:
        seen.append(data)
        if data == b"\x02bad":
            raise RecursionError

    monkeypatch.setattr(runtime.stack.take.__self__, "_other", take)
    source = runtime.sockets.local
    runtime.driver.on_batch([([b"\x02bad", b"\x02good"], source)])
    assert seen == [b"\x02bad", b"\x02good"]


async def test_a_change_of_addresses_that_could_not_be_told_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "RETRY_S", 0.01)
    calls, errors = 0, list[Exception]()

    def change() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            _full()

    watcher = InterfaceWatcher(asyncio.get_running_loop(), change, errors.append)
    watcher._fire()  # what a netlink event ends in
    await _until(lambda: calls == 3)
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.ENOSPC] * 2
    watcher.close()


async def test_polling_goes_on_when_the_addresses_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces.sys, "platform", "elsewhere")
    monkeypatch.setattr(interfaces, "POLL_S", 0.01)
    answers = iter([[("192.0.2.1", 24)], None, None, [("192.0.2.2", 24)]])

    def networks(loopback: bool) -> list[tuple[str, int]]:
        found = next(answers, [("192.0.2.2", 24)])
        if found is None:
            _full()
        assert found is not None
        return found

    monkeypatch.setattr(interfaces, "local_networks", networks)
    seen, errors = asyncio.Event(), list[Exception]()
    watcher = InterfaceWatcher(asyncio.get_running_loop(), seen.set, errors.append)
    watcher.start()
    await wait_for(seen.wait(), 5)
    assert len(errors) == 2
    watcher.close()


def test_without_a_taker_the_exception_is_the_callers_and_the_timer_is_set_again() -> None:
    table = Timers()
    table.at(1.0, _full)
    table.at(1.0, lambda now: None)
    with pytest.raises(OSError, match="No space"):
        table.run(1.0)
    table.run(1.0)
    assert table.next_deadline() == 1.0 + timers.RETRY_S
