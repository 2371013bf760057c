"""A Dask cluster over the mesh: the scheduler here, a worker in a process and on a node of its own; both move.

    pip install 'meshnode[dask]'
    python examples/dask_cluster.py

prints

    the worker is on another node: True
    [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
"""

from __future__ import annotations

import asyncio
import sys
import time

import distributed
from nodes import two_nodes

import meshnode
from meshnode.ext.dask import backend


def square(number: int) -> int:
    """Take a while; runs in the worker."""
    time.sleep(0.1)
    return number * number


async def work(home: str, seed: str, scheduler: str) -> None:
    """Be a worker until the scheduler ends it."""
    config = meshnode.Config(home=home, listen="127.0.0.1:0", mdns=False, seeds=[seed])
    async with meshnode.Node(config) as node:
        with backend(node, allow="any"):
            async with distributed.Worker(scheduler, dashboard_address="127.0.0.1:0") as worker:
                await asyncio.sleep(0.5)
                await node.rebind()  # moves, with tasks in progress
                await worker.finished()


async def main() -> None:
    async with two_nodes() as (node, _):
        with backend(node, allow="any"):
            async with distributed.Scheduler(host="mesh://scheduler", dashboard_address="127.0.0.1:0") as scheduler:
                home = f"{node.config.home}-worker"
                line = [sys.executable, __file__, home, node.config.seeds[0], scheduler.address]
                process = await asyncio.create_subprocess_exec(*line)
                async with distributed.Client(scheduler.address, asynchronous=True) as client:
                    await client.wait_for_workers(1)
                    print("the worker is on another node:", str(node.id) not in str(list(scheduler.workers)))
                    tasks = client.map(square, range(10))
                    await node.rebind()
                    print(await client.gather(tasks))
            await process.wait()


asyncio.run(work(*sys.argv[1:]) if len(sys.argv) > 1 else main())
