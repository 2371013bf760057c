"""Fixtures that several kinds of test share."""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from meshnode import Config, Node

MakeNode = Callable[..., Awaitable[Node]]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script that starts the tests in the background has them ignore SIGINT, and what is ignored stays so in every
    # program that they start (POSIX, exec); what is handled does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def make_node(tmp_path: Path) -> AsyncIterator[MakeNode]:
    """Start nodes on loopback, without mDNS unless asked; all are closed at the end."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def make(*, seed: Node | None = None, **settings: Any) -> Node:
            settings = {"listen": "127.0.0.1:0", "mdns": False, "home": tmp_path / f"node{next(numbers)}"} | settings
            if seed is not None:
                settings["seeds"] = (f"{seed.id}@{seed.record.endpoints[0]}",)
            return await stack.enter_async_context(Node(Config(**settings)))

        yield make


async def echo(reader: Any, writer: Any, peer: Any) -> None:
    """A service that sends back what it gets."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
