"""What clients need of a node: to open streams."""

from __future__ import annotations

import asyncio
from typing import Protocol

from meshnode.identity.node_id import NodeId


class Opener(Protocol):
    """A ``meshnode.Node``, or what ``meshnode.attach`` returns."""

    async def open(self, peer: NodeId | str, service: str, /) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a stream to a service of one node."""
