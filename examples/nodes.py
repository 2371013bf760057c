"""Two nodes on this host, as the examples use them: in a program there is one, and the other is elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from meshnode import Config, Node


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Node, Node]]:
    """Start the nodes ``server`` and ``client``, and a seed that both know; close them at the end."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seed = Node(Config(home=home / "seed", listen="127.0.0.1:0", mdns=False, seed_role=True))
        await stack.enter_async_context(seed)
        seeds = (f"{seed.id}@{seed.record.endpoints[0]}",)
        found = []
        for name in ("server", "client"):
            node = Node(Config(home=home / name, name=name, listen="127.0.0.1:0", mdns=False, seeds=seeds))
            found.append(await stack.enter_async_context(node))
        for node, other in (found, reversed(found)):
            await node.ping(other.config.name)  # once: names are told by gossip, which may come after a first call
        yield found[0], found[1]
