"""The life of a node in a program: what may be called when, and that nothing stays behind an end, however it comes."""

from __future__ import annotations

import asyncio
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode import Config, Identity, Node
from meshnode.errors import AlreadyRunning, ConfigError, MeshError, NodeClosed, NotRunning
from meshnode.sdk.life import Running
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, echo
from tests.given_time import wait_for, within
from tests.live.test_datagrams import echo_datagrams

SOON_S = 3.0  # a goodbye by mDNS takes a second at most, a router half a second
BEFORE = {"create_server", "serve", "serve_datagrams", "start", "close"}  # what a node that was not started takes
ALWAYS = {"config", "is_closed"}


def config(home: Path, **settings: Any) -> Config:
    return Config(home=home, **{"listen": "127.0.0.1:0", "mdns": False, "port_mapping": False, **settings})


async def touch(node: Node, name: str) -> None:
    """Use one member of a node, with arguments that fit."""
    arguments = {
        "create_connection": (asyncio.Protocol, node.config.name, "echo"),
        "create_server": (asyncio.Protocol, "again"),
        "datagrams": (node.config.name, "echo"),
        "socket": (node.config.name, "echo"),
        "serve": ("again", echo),
        "serve_datagrams": ("again", echo_datagrams),
        "open": (node.config.name, "echo"),
        "open_any": ("echo",),
        "find": ("echo",),
        "join": ("news",),
    }
    peer = ("a" * 52,)
    member = getattr(node, name)
    if callable(member):
        takes = [p for p in inspect.signature(member).parameters.values() if p.default is p.empty]
        member = member(*arguments.get(name, peer if takes else ()))
    if inspect.isawaitable(member):
        await member


def members(node: Node) -> list[str]:
    return [name for name in dir(node) if not name.startswith("_") and name not in ALWAYS]


async def test_before_the_start_every_member_raises_not_running(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    for name in sorted(set(dir(Node)) - ALWAYS - BEFORE):
        if not name.startswith("_"):
            with pytest.raises(NotRunning) as error:
                await touch(node, name)
            assert type(error.value) is NotRunning, name
            assert "start" in error.value.hint


async def test_after_the_end_every_method_raises_node_closed_which_is_not_running(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    async with node:
        own = (node.id, node.address)
    assert (node.id, node.address) == own, "what it was is known"
    for name in sorted(set(members(node)) - {"id", "address", "close"}):
        with pytest.raises(NodeClosed) as error:
            await touch(node, name)
        assert isinstance(error.value, NotRunning)
    await node.close()


async def test_a_node_that_never_started_is_closed_all_the_same(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    await node.close()
    with pytest.raises(NodeClosed):
        await node.start()


async def test_a_start_that_fails_half_way_leaves_nothing_locked_or_open_and_may_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a fault")

    tasks = asyncio.all_tasks()
    node = Node(config(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr("meshnode.sdk.life.TopicBook", fail)
        with pytest.raises(RuntimeError, match="a fault"):
            await node.start()
    assert asyncio.all_tasks() == tasks
    await node.start()
    with pytest.raises(AlreadyRunning):
        await Node(config(tmp_path)).start()
    await node.close()


async def test_a_node_whose_offers_cannot_be_withdrawn_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(running: Running) -> None:
        raise RuntimeError("a fault")

    node = Node(config(tmp_path))
    await node.start()
    monkeypatch.setattr(Running, "withdraw_offers", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        await node.close()
    ending = node._life._ending
    assert ending is not None, "the rest ends without a second call"
    await wait_for(ending, SOON_S)
    monkeypatch.undo()
    async with Node(config(tmp_path)):
        pass  # the home is free


async def test_a_node_whose_topics_cannot_be_left_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("meshnode.sdk.topic.YOUNG_READY_S", 0.01)
    node = Node(config(tmp_path))
    await node.start()
    topics = [await node.join(name) for name in ("first", "second")]
    reading = [asyncio.ensure_future(anext(topic)) for topic in topics]
    await asyncio.wait(reading, timeout=0)
    with monkeypatch.context() as broken:
        broken.setattr(runtime_of(node), "drain_directory", fail)
        with pytest.raises(RuntimeError, match="a fault"):
            await node.close()
    for each in reading:
        with pytest.raises(StopAsyncIteration):
            await wait_for(each, SOON_S)
    ending = node._life._ending
    assert ending is not None, "the rest ends without a second call"
    await wait_for(ending, SOON_S)
    async with Node(config(tmp_path)):
        pass  # the home is free


async def test_several_calls_of_close_take_the_offers_back_once_and_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, was_closed = asyncio.Event(), []

    async def slow(running: Running) -> None:
        await answered.wait()
        was_closed.append(running.runtime.is_closed)

    monkeypatch.setattr(Running, "withdraw_offers", slow)
    node = Node(config(tmp_path))
    await node.start()
    closing = [asyncio.ensure_future(node.close()) for _ in range(3)]
    await asyncio.wait(closing, timeout=0)
    answered.set()
    await wait_for(asyncio.gather(*closing), SOON_S)
    assert was_closed == [False]


async def test_a_second_start_is_an_error_and_the_first_one_goes_on(tmp_path: Path) -> None:
    async with Node(config(tmp_path)) as node:
        with pytest.raises(AlreadyRunning, match="started already"):
            await node.start()
        assert node.status()["id"] == str(node.id)


# ---- an end that is interrupted


def descriptors() -> set[str]:
    """The sockets and files below a test's folder that this process holds."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith("socket:") or "/pytest-" in target:
            found.add(target)
    return found


async def is_all_gone(before: set[str], tasks: set[Any]) -> bool:
    for _ in range(int(SOON_S / 0.02)):
        if not descriptors() - before and not asyncio.all_tasks() - tasks:
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("mdns", [False, True])
async def test_a_close_that_is_cancelled_at_any_point_leaves_nothing_locked_or_open(tmp_path: Path, mdns: bool) -> None:
    before, tasks = descriptors(), asyncio.all_tasks()
    settings = config(tmp_path, mdns=mdns, port_mapping=mdns, name="self")
    for turns in range(40 if not mdns else 12):
        node = Node(settings)
        await node.start()
        node.serve("echo", echo, allow="any")
        for _ in range(turns % 3):
            await asyncio.sleep(0)  # the start goes on in the background
        closing = asyncio.create_task(node.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        finished = not closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        if turns:  # else it has not begun
            async with Node(settings):
                pass  # the home is free at once
        await wait_for(node.close(), SOON_S)
        async with Node(settings):
            pass
        if finished:
            break
    assert await is_all_gone(before, tasks), descriptors() - before


async def test_a_block_that_is_cancelled_at_any_time_leaves_the_home_free(tmp_path: Path) -> None:
    before, tasks = descriptors(), asyncio.all_tasks()
    settings = config(tmp_path)

    async def block() -> None:
        async with Node(settings):
            await asyncio.sleep(0)

    for delay in range(40):
        running = asyncio.create_task(block())
        await asyncio.sleep(delay * 0.0005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await block()
    assert await is_all_gone(before, tasks), descriptors() - before


async def test_two_closes_at_once_both_wait_for_the_end(tmp_path: Path) -> None:
    settings = config(tmp_path)
    node = Node(settings)
    await node.start()
    first, second = asyncio.create_task(node.close()), asyncio.create_task(node.close())
    await asyncio.sleep(0)
    first.cancel()
    await second
    async with Node(settings):
        assert first.cancelled()


async def test_a_handler_may_close_its_node(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)

    async def end(reader: Any, writer: Any, peer: Any) -> None:
        await there.close()

    there.serve("end", end, allow="any")
    with pytest.raises(meshnode.ConnectionLost):
        await wait_for((await here.open(there.id, "end")).writer.wait_closed(), SOON_S)
    await wait_for(there.close(), SOON_S)


async def test_whatever_waits_ends_with_the_node(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)

    async def hang(reader: Any, writer: Any, peer: Any) -> None:
        await asyncio.Event().wait()

    there.serve("hang", hang, allow="any")
    reader, _writer = await here.open(there.id, "hang")
    topic, _ = await asyncio.gather(here.join("news"), there.join("news"))

    async def iterate(of: Any) -> None:
        async for _ in of:
            pass

    waiting = [reader.read(), here.open("a" * 52, "echo"), here.ping("a" * 52), here.find("none")]
    waiting += [here.identify("no"), here.join("alone"), here.open_any("none"), here.resolve("a" * 52)]
    tasks = [asyncio.ensure_future(each) for each in [*waiting, iterate(topic), iterate(here.events())]]
    await asyncio.sleep(0.2)
    await here.close()
    outcomes = await wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)
    assert all(outcome is None or isinstance(outcome, MeshError | list) for outcome in outcomes), outcomes


async def test_what_a_call_asks_behind_the_end_is_answered_by_it(make_node: MakeNode) -> None:
    node = await make_node()
    runtime, other = runtime_of(node), Identity.generate().id
    await node.close()
    for asked in (runtime.resolve(other), runtime.connect(other), runtime.ping(other, 1.0)):
        with pytest.raises(NodeClosed):
            await wait_for(asked, SOON_S)


async def test_a_wait_for_an_event_may_have_a_time_limit_and_ends_with_the_node(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there, gossip=False)
    late, events = here.events(), here.events()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 0)
    await here.connect(there.id)
    assert (await wait_for(anext(events), SOON_S)).peer == there.id
    await here.close()
    for iteration in (late, events):
        async with within(SOON_S):
            assert {event.peer async for event in iteration} == {there.id}
        with pytest.raises(StopAsyncIteration):
            await anext(iteration)


async def test_a_second_reader_of_a_topic_is_refused_and_both_end_with_the_node(make_node: MakeNode) -> None:
    node = await make_node()
    topic = await node.join("news")
    first, second = asyncio.ensure_future(anext(topic)), asyncio.ensure_future(anext(topic))
    await asyncio.wait([second], timeout=SOON_S)
    with pytest.raises(meshnode.StreamMisused, match="another coroutine waits"):
        second.result()
    await node.close()
    with pytest.raises(StopAsyncIteration):
        await wait_for(first, SOON_S)


async def test_cancelled_calls_leave_the_node_as_it_was(make_node: MakeNode) -> None:
    there = await make_node(name="there")
    here = await make_node(seed=there)
    there.serve("echo", echo, allow="any")
    await here.open_any("echo")
    calls = [
        lambda: here.open(there.id, "echo"),
        lambda: here.open_any("echo"),
        lambda: here.ping(there.id),
        lambda: here.connect("there"),
        lambda: here.resolve(there.id),
        lambda: here.join("news"),
        lambda: here.find("echo"),
        lambda: here.open(there.id, "nope"),
    ]
    tasks = asyncio.all_tasks()
    for call in calls:
        for turns in range(12):
            task = asyncio.ensure_future(call())  # type: ignore[no-untyped-call]
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    reader, writer = await here.open(there.id, "echo")
    async with writer:
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
    assert await is_all_gone(descriptors(), tasks)


def test_a_node_is_used_in_the_loop_of_its_start_and_freed_when_that_is_gone(tmp_path: Path) -> None:
    left = Node(config(tmp_path, dht=False))
    asyncio.run(left.start())
    for call in (lambda: left.resolve("a" * 52), lambda: left.open("a" * 52, "echo")):
        with pytest.raises(NotRunning, match="in another event loop") as error:
            asyncio.run(call())
        assert "run_coroutine_threadsafe" in error.value.hint
    asyncio.run(left.close())

    async def with_a_thread() -> None:
        async with Node(config(tmp_path, dht=False)) as node:

            def elsewhere() -> None:
                with pytest.raises(NotRunning, match="in another event loop"):
                    asyncio.run(node.close())
                assert node.status()["id"] == str(node.id), "what is only read may be read"

            await asyncio.to_thread(elsewhere)
            assert not node.is_closed

    asyncio.run(with_a_thread())


def test_a_config_is_a_config() -> None:
    wrong: Any = "/some/home"
    with pytest.raises(ConfigError, match=r"config is a meshnode\.Config"):
        Node(wrong)
    home: Any = 5
    with pytest.raises(ConfigError, match="home is a path"):
        Config(home=home)
    with pytest.raises(ConfigError, match="home has a zero byte"):
        Config(home="/a\0b")


async def test_a_config_reads_the_file_of_the_home_only_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_text('name = "laptop"\n')
    assert (Config(home=tmp_path).name, Config.load(tmp_path, env={}).name) == ("", "laptop")
