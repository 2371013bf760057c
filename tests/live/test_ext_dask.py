"""Dask over the mesh: a scheduler here, a worker in a process of its own, tasks through moves of both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import distributed
import pytest
from distributed.comm import connect

import meshnode
from meshnode import Node
from meshnode.ext.dask import backend
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.cli_node import clean_environment
from tests.live.ext_mesh import PLACES

WORKER = """
import asyncio, sys
import distributed, meshnode
from meshnode.ext.dask import backend

async def main(home, seed, scheduler):
    config = meshnode.Config(home=home, listen="127.0.0.1:0", mdns=False, seeds=[seed])
    async with meshnode.Node(config) as node:
        with backend(node, allow="any"):
            async with distributed.Worker(scheduler, nthreads=1, dashboard_address="127.0.0.1:0") as worker:
                print(worker.address, flush=True)
                for number in range(3):
                    await asyncio.sleep(0.4)
                    await node.rebind(f"127.0.5.{number + 2}:0")
                await worker.finished()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def node(make_node: MakeNode) -> AsyncIterator[Node]:
    seed = await make_node(seed_role=True)
    found = await make_node(seed=seed, name="scheduler")
    with backend(found, allow="any"):
        yield found


def slowly(number: int) -> int:
    """Square a number in its own time; runs in the worker."""
    import time

    time.sleep(0.03)
    return number * number


Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(node: Node, tmp_path: Path) -> Any:
    """Start a worker; it is ended at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(scheduler: str) -> subprocess.Popen[str]:
        seed = node.config.seeds[0]
        line = [sys.executable, "-c", WORKER, str(tmp_path / "worker"), seed, scheduler]
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=clean_environment()))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


async def test_tasks_go_on_while_scheduler_and_worker_move(node: Node, start: Start) -> None:
    async with distributed.Scheduler(host="mesh://scheduler", dashboard_address="127.0.0.1:0") as scheduler:
        assert scheduler.address == f"mesh://{node.id}/scheduler"
        worker = start(scheduler.address)
        assert worker.stdout is not None
        address = (await asyncio.to_thread(worker.stdout.readline)).strip()
        assert address.startswith("mesh://")
        assert str(node.id) not in address
        async with distributed.Client(scheduler.address, asynchronous=True) as client:
            futures = client.map(slowly, range(60), pure=False)
            for _ in range(3):
                await asyncio.sleep(0.4)
                await node.rebind(f"127.0.4.{next(PLACES)}:0")
            assert await client.gather(futures) == [number * number for number in range(60)]
            large = await client.submit(bytes, 20_000_000)
            assert len(large) == 20_000_000


async def test_what_cannot_be_reached_is_an_error_of_dask(node: Node) -> None:
    with pytest.raises(OSError, match="nothing"):
        await connect(f"mesh://{node.config.seeds[0].partition('@')[0]}/nothing", timeout=1)


async def test_junk_and_an_end_in_the_middle_of_a_message_close_a_comm(node: Node, make_node: MakeNode) -> None:
    stranger = await make_node(seed=node)
    async with distributed.Scheduler(host="mesh://scheduler", dashboard_address="127.0.0.1:0"):
        for junk in (b"\xff" * 8, b"\x08" + b"\0" * 7 + b"\xff" * 8, b"\x05" + b"\0" * 7 + b"ab"):
            reader, writer = await stranger.open(node.id, "scheduler")
            writer.write(junk)
            writer.write_eof()
            with pytest.raises((meshnode.ConnectionLost, asyncio.IncompleteReadError)):
                while await wait_for(reader.readexactly(1), 10):
                    pass
