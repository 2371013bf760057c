"""``COUNT SEED DIRECTORY``: so many idle nodes in one process, each with a reservation at the seed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from meshnode import Config, Node
from meshnode.sdk.node import runtime_of

AT_ONCE = 20
# a reservation and nothing else: what gossip costs with so many members is gossip's to show
IDLE: Any = {"mdns": False, "dht": False, "gossip": False, "port_mapping": False, "listen": "0.0.0.0:0"}


async def joined(node: Node) -> None:
    """Wait until its record names the relay."""
    while not runtime_of(node).stack.relaying.homes:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.02)


async def main(count: int, seed: str, directory: Path) -> None:
    """Start them a few at a time, so that no handshake times out."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        for first in range(0, count, AT_ONCE):
            batch = []
            for number in range(first, min(first + AT_ONCE, count)):
                batch.append(Node(Config(home=directory / str(number), seeds=(seed,), **IDLE)))
            for node in batch:
                await stack.enter_async_context(node)
            for node in batch:
                await joined(node)
        print(json.dumps({"seconds": round(time.monotonic() - began, 1)}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, os.read, 0, 1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
