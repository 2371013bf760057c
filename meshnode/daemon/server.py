"""The process behind ``meshnode up``: a node, its services and the control socket (0600, one per home)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshnode.base.refusals import refused
from meshnode.config import Config
from meshnode.daemon.context import Daemon
from meshnode.daemon.paths import socket_path, why_open
from meshnode.daemon.request import Request, known_requests, parse
from meshnode.errors import ConfigError, MeshError
from meshnode.sdk.node import Node
from meshnode.services.registry import ServiceBook

log = logging.getLogger("meshnode.daemon")

MAX_REQUEST = 1 << 16


class ControlServer:
    """Server of the control socket. One request a connection: a line in, result lines and an end out."""

    def __init__(self, node: Node, book: ServiceBook, path: Path) -> None:
        self._daemon = Daemon(node, book)
        self._path = path
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], None] = {}

    async def start(self) -> None:
        """Listen. This process holds the home's lock, so a socket that is there already was left by a dead one."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (unsafe := why_open(self._path)) is not None:
            raise ConfigError(unsafe[0], hint=unsafe[1])
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._client, str(self._path), limit=MAX_REQUEST)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = None
        try:
            await self._serve(await reader.readline(), reader, writer)
        except (ConnectionError, ValueError, asyncio.CancelledError) as error:
            log.debug("a control client went away: %r", error)
        finally:
            self._clients.pop(task, None)
            writer.close()

    async def _serve(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = parse(line)
        except MeshError as error:
            await _write(writer, error.to_json())
            return
        if asked.endless:
            await self._answer_while_heard(asked, reader, writer)
        else:
            await self._answer(asked, writer)

    async def _answer_while_heard(
        self, asked: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Give an answer without an end: over when the client goes away, which sends no more until then."""
        answering = asyncio.ensure_future(self._answer(asked, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, asked: Request, writer: asyncio.StreamWriter) -> None:
        try:
            async for result in asked.answer(self._daemon):
                await _write(writer, {"result": result})
            answer: dict[str, Any] = {"end": True}
        except MeshError as error:
            answer = error.to_json()
        except ConnectionError:
            raise  # of the client: the families of a node's own errors are above
        except OSError as error:
            log.warning("%s could not be done: %s", asked.method, error)
            answer = refused(error).to_json()
        except (TypeError, KeyError, ValueError) as error:
            answer = MeshError(f"bad request: {error}", hint="are both ends of one version?").to_json()
        await _write(writer, answer)


async def _write(writer: asyncio.StreamWriter, line: dict[str, Any]) -> None:
    writer.write(json.dumps(line).encode() + b"\n")
    await writer.drain()


def run(config: Config, ready: Callable[[Node], None]) -> None:
    """Run a node until SIGINT or SIGTERM; ``ready`` is called once it answers requests. Raises MeshError."""
    known_requests()  # before the node starts: no import on its loop later
    asyncio.run(_run(config, ready))


async def _run(config: Config, ready: Callable[[Node], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Node(config) as node:
        book = ServiceBook(node)
        control = ControlServer(node, book, socket_path(config.home_path))
        await control.start()
        try:
            await book.restore()
            for number in (signal.SIGINT, signal.SIGTERM):
                with suppress(NotImplementedError):
                    loop.add_signal_handler(number, stop.set)
            ready(node)
            await stop.wait()
        finally:
            await control.close()
            await book.close()
