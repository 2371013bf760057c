"""The interpreter's own tests of asyncio's streams, unmodified, on the streams of the mesh.

In their module ``asyncio.StreamReader`` is a ``MeshReader`` over a stream that the test feeds, and
``asyncio.open_connection`` goes through two nodes to the TCP server that the test has started.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from meshnode import Config, MeshWriter, Node
from meshnode.quic.preface import encode_header
from meshnode.quic.stream import Stream
from meshnode.sdk.streams import LIMIT, MeshReader
from meshnode.sdk.transport import Signal
from meshnode.services.expose import Expose
from meshnode.services.setting import Setting

theirs = pytest.importorskip("test.test_asyncio.test_streams", reason="this interpreter comes without its tests")

NO_STREAM = "tests no reader and no writer"
UNIX = "opens a UNIX socket by a path"
TLS = "upgrades a TCP connection to TLS"
CONSTRUCTOR = "makes a reader or protocol without a stream, and looks for its loop"
PRIVATE = "sets private attributes of asyncio's classes"
LEFT_OUT = {
    "test_open_unix_connection": UNIX,
    "test_open_connection_no_loop_ssl": TLS,
    "test_open_unix_connection_no_loop_ssl": UNIX,
    "test_open_connection_error": "calls a private method of asyncio's protocol",
    "test_open_unix_connection_error": UNIX,
    "test_start_unix_server": UNIX,
    "test_start_tls": TLS,
    "test_streams_start_tls": TLS,
    "test_read_all_from_pipe_reader": "connects a reader to a pipe by asyncio's protocol",
    "test_streamreader_constructor_without_loop": CONSTRUCTOR,
    "test_streamreader_constructor_use_running_loop": CONSTRUCTOR,
    "test_streamreader_constructor_use_global_loop": CONSTRUCTOR,
    "test_streamreaderprotocol_constructor_without_loop": CONSTRUCTOR,
    "test_streamreaderprotocol_constructor_use_running_loop": CONSTRUCTOR,
    "test_streamreaderprotocol_constructor_use_global_loop": CONSTRUCTOR,
    "test_multiple_drain": "tests asyncio's FlowControlMixin",
    "test_drain_raises": "blocks the loop in accept, which the nodes need",
    "test___repr__waiter": PRIVATE,
    "test___repr__transport": PRIVATE,
    "test_loop_is_closed_resource_warnings": "closes the loop below the nodes",
    "test_unhandled_exceptions": "tests asyncio's server",
    "test_unhandled_cancel": "tests asyncio's server",
    "test_IncompleteReadError_pickleable": NO_STREAM,
    "test_LimitOverrunError_pickleable": NO_STREAM,
}


class Table:
    """What a stream needs of its connection in order to be read."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class StreamReader(MeshReader):
    """A mesh reader that is fed as the tests feed asyncio's; it has its name because they look at it."""

    def __init__(self, limit: int = LIMIT, loop: object = None) -> None:
        table: Any = Table()
        stream = Stream(table, 0, opener=False)
        stream.feed(encode_header("test"), False)
        super().__init__(stream, Signal(stream), limit)

    def feed_data(self, data: Any) -> Any:
        self._stream.feed(bytes(data), False)

    def feed_eof(self) -> None:
        self._stream.feed(b"", True)

    def set_exception(self, exc: Any) -> Any:
        self._stream.reset(error=exc)  # drops what has come, as asyncio's does; what the peer resets is read first

    @property
    def _buffer(self) -> bytes:
        return bytes(self._held) + b"".join(self._stream.unread)

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        waiter = self._signal._reader
        return None if waiter is None or waiter.done() else waiter


class StreamWriter(MeshWriter):
    """A mesh writer under the name that the tests look for."""


class OnTheMesh(theirs.StreamTests):  # type: ignore[misc]
    """Their tests."""

    __test__ = False  # run below, but for those that are left out

    def setUp(self) -> None:
        super().setUp()
        self.nodes: list[Node] = []
        self.homes = tempfile.TemporaryDirectory()
        ours = types.SimpleNamespace(**vars(asyncio))
        ours.StreamReader, ours.open_connection = StreamReader, self.connect
        patch = mock.patch.object(theirs, "asyncio", ours)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(self.homes.cleanup)

    def tearDown(self) -> None:
        for node in self.nodes:
            self.loop.run_until_complete(node.close())
        super().tearDown()

    async def node(self, **settings: Any) -> Node:
        home = Path(self.homes.name) / str(len(self.nodes))
        node = Node(Config(home=home, listen="127.0.0.1:0", mdns=False, port_mapping=False, dht=False, **settings))
        await node.start()
        self.nodes.append(node)
        return node

    async def connect(self, host: str, port: int) -> tuple[MeshReader, MeshWriter]:
        """What ``asyncio.open_connection`` does, through the mesh."""
        there = await self.node()
        here = await self.node(seeds=(f"{there.id}@{there.record.endpoints[0]}",))
        Expose(there, Setting("tcp", (f"{host}:{port}",), ("any",)))
        reader, writer = await here.open(there.id, "tcp")
        writer.__class__ = StreamWriter
        return reader, writer


TESTS = [name for name in unittest.defaultTestLoader.getTestCaseNames(OnTheMesh) if name not in LEFT_OUT]


@pytest.mark.parametrize("name", TESTS)
def test_asyncios_own(name: str) -> None:
    gc.collect()  # or warnings of what other tests left unclosed are counted
    with mock.patch("asyncio.set_event_loop_policy"):
        outcome = unittest.TestResult()
        OnTheMesh(name).run(outcome)
    assert not outcome.failures + outcome.errors, "\n".join(text for _, text in outcome.failures + outcome.errors)


def test_most_of_them_run() -> None:
    assert len(TESTS) >= 45
