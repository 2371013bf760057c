"""Ends in order: a service is withdrawn before its node stops, so that a rolling update costs no request."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from meshnode import Config, ConnectionLost, MeshError, MeshReader, MeshWriter, Node, NodeId, ServiceNotFound
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import eventually, status_of, wait_for, within
from tests.live.cli_node import CliNode, clean_environment

HZ, DRAIN_S = 100, 3
DEADLINE_S = 20.0


async def _upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        asked = await reader.read()
        await asyncio.sleep(0.1)  # so ten requests run whenever an instance is told to end
        writer.write(asked.upper())
    writer.close()


async def _slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def _target(what: object = _upper) -> AsyncIterator[int]:
    async with await asyncio.start_server(what, "127.0.0.1", 0) as server:  # type: ignore[arg-type]
        yield server.sockets[0].getsockname()[1]


def _start(home: Path, target: int, seed: CliNode, drain: int = DRAIN_S) -> CliNode:
    """Start an instance, as a pod does: a new home, a new key."""
    home.mkdir(mode=0o700)
    (home / "meshnode.toml").write_text(f"drain = {drain}\n")
    node = CliNode(home, seed=seed)
    node.ask("expose", "web", f"tcp://127.0.0.1:{target}", "--allow", "any")
    return node


class Caller:
    """Sends a request each 10 ms, whatever became of the others; counts what failed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()
        self.done = self.cut = 0
        self.served_by = ""
        self.failed: list[str] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = loop.create_task(self._one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due = max(due + 1 / HZ, loop.time() - 1.0)
            await asyncio.sleep(due - loop.time())

    async def _ask(self) -> bytes:
        reader, writer = await self._node.open_any("web", trusted="any")
        self.served_by = str(writer.get_extra_info("peer"))
        writer.write(b"a request")
        writer.write_eof()
        return await reader.read()

    async def _one(self) -> None:
        try:
            async with within(DEADLINE_S):
                try:
                    answer = await self._ask()
                except ConnectionLost as error:
                    if "fell silent" not in error.message:
                        raise
                    self.cut += 1  # a busy machine let an instance wait for a tenth of a second: no end of any
                    answer = await self._ask()
        except (MeshError, TimeoutError) as error:
            self.failed.append(repr(error))
        else:
            self.done += 1
            if answer != b"A REQUEST":
                self.failed.append(repr(answer))

    async def finish(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_a_rolling_update_under_a_hundred_requests_a_second_fails_none(tmp_path: Path) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    nodes = [seed]
    try:
        async with _target() as target:
            config = Config(
                home=tmp_path / "caller",
                listen="127.0.0.1:0",
                mdns=False,
                port_mapping=False,
                seeds=(f"{seed.id}@{seed.endpoint}",),
            )
            for number in range(2):
                nodes.append(await asyncio.to_thread(_start, tmp_path / f"pod{number}", target, seed))
            async with Node(config) as node:
                await _knows(node, {one.id for one in nodes[1:]})
                caller = Caller(node)
                calling = asyncio.ensure_future(caller.run())
                for number in range(2, 4):
                    fresh = await asyncio.to_thread(_start, tmp_path / f"pod{number}", target, seed)
                    nodes.append(fresh)
                    await _knows(node, {fresh.id})
                    async with within(DEADLINE_S):
                        while caller.done < 2 * HZ * (number - 1):  # noqa: ASYNC110
                            await asyncio.sleep(1 / HZ)
                    old = next(one for one in nodes if one.id == caller.served_by)  # the one that costs most
                    nodes.remove(old)
                    assert await asyncio.to_thread(old.stop) == 0
                    assert old.id not in {str(i.node) for i in await node.find("web")}
                calling.cancel()
                await caller.finish()
                assert caller.failed == []
                assert caller.done > 4 * HZ
    finally:
        for one in nodes:
            await asyncio.to_thread(one.stop)


async def _knows(node: Node, instances: set[str]) -> None:
    async with within(DEADLINE_S):
        while not instances <= {str(instance.node) for instance in await node.find("web")}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_withdrawn_service_is_not_found_any_more_and_still_serves_those_that_know_it(tmp_path: Path) -> None:
    def config(name: str, *seeds: str) -> Config:
        home = tmp_path / name
        return Config(home=home, listen="127.0.0.1:0", mdns=False, port_mapping=False, seeds=seeds)

    async def hello(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        writer.write(b"hello")

    async with (
        Node(config("server")) as server,
        Node(config("caller", f"{server.id}@{server.record.endpoints[0]}")) as caller,
    ):
        service = server.serve("web", hello, allow=["any"])
        await _knows(caller, {str(server.id)})
        service.withdraw()
        service.update(healthy=True, load=50)  # which announces nothing
        async with within(DEADLINE_S):
            while await caller.find("web"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.2)
        assert await caller.find("web") == []
        reader, _ = await caller.open(server.id, "web")
        assert await reader.read() == b"hello"
        service.close()
        with pytest.raises(ServiceNotFound):
            await caller.open(server.id, "web")


async def test_a_connection_has_the_time_of_a_drain_and_no_more(tmp_path: Path) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    try:
        async with _target(_slow) as target:
            server = await asyncio.to_thread(_start, tmp_path / "pod", target, seed)
            listen = (await asyncio.to_thread(seed.ask, "forward", "127.0.0.1:0", f"{server.id}/web"))["listen"]
            port = int(listen.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(DRAIN_S / 2)
            writer.write(b"meanwhile")
            assert await reader.readexactly(9) == b"meanwhile"
            with pytest.raises(ConnectionResetError):
                await wait_for(reader.read(), DEADLINE_S)
            assert time.monotonic() - began >= DRAIN_S - 0.1
            assert await asyncio.to_thread(server.stop) == 0
            writer.close()
    finally:
        await asyncio.to_thread(seed.stop)


async def test_a_connection_of_a_service_that_was_exposed_again_ends_with_it(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    book = ServiceBook(there)
    async with _target(_slow) as target:
        await book.expose("web", str(target), ("any",))
        reader, writer = await here.open(there.id, "web")
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        await book.expose("web", str(target), (str(here.id),), limit=5)
        writer.write(b"since")
        assert await reader.readexactly(5) == b"since"
        assert await book.unexpose("web") == {"name": "web", "cut": 1}
        with pytest.raises(ConnectionLost):
            await wait_for(reader.read(), DEADLINE_S)
    await book.close()


async def test_a_drain_ends_early_with_its_last_connection_or_at_a_second_signal(tmp_path: Path) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    try:
        async with _target(_slow) as target:
            for number, twice in enumerate((False, True)):
                start = (tmp_path / f"pod{number}", target, seed, 600)
                server = await asyncio.to_thread(_start, *start)
                listen = (await asyncio.to_thread(seed.ask, "forward", "127.0.0.1:0", f"{server.id}/web"))["listen"]
                reader, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(1.5)
                assert server.process.poll() is None
                if not twice:
                    writer.write_eof()
                    assert await reader.read() == b""
                assert await asyncio.to_thread(server.stop if twice else _wait, *(() if twice else (server,))) == 0
                writer.close()
    finally:
        await asyncio.to_thread(seed.stop)


def _wait(node: CliNode) -> int:
    code = node.process.wait(DEADLINE_S)
    node.stop()
    return code


CAN_UNSHARE = shutil.which("unshare") is not None and subprocess.run(
    ["unshare", "--pid", "--fork", "true"], check=False, capture_output=True
).returncode == 0  # fmt: skip


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs root and unshare(1): a PID namespace")
def test_a_node_that_is_process_one_reaps_orphans_and_stops_on_sigterm(tmp_path: Path) -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "meshnode", "--home", str(tmp_path)]
    command += ["up", "--json", "--no-mdns", "--no-port-mapping", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline()
        [node] = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        orphan = ["nsenter", "--target", node, "--pid", "sh", "-c", "sh -c 'sleep 0.3' & sh -c 'sleep 0.2' &"]
        for _ in range(3):
            subprocess.run(orphan, check=True)
        children = Path(f"/proc/{node}/task/{node}/children")
        assert len(children.read_text().split()) > 0
        eventually(lambda: children.read_text().split() == [])
        subprocess.run(["kill", "-TERM", node], check=True)
        assert status_of(unshare, 10) == 0
