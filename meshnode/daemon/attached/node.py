"""``meshnode.attach``: the running node of a home for a program that is none of its own."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from meshnode.base.clock import SystemClock
from meshnode.config import expanded
from meshnode.daemon.attached.carried import ControlSocket
from meshnode.daemon.attached.control import CONNECT_S, ask, ask_one, begin
from meshnode.daemon.attached.parts import AttachedEvents, AttachedService, AttachedTopic
from meshnode.daemon.attached.primitives import AttachedPrimitives, texts_of
from meshnode.daemon.client import connect
from meshnode.daemon.request import Json, Request
from meshnode.daemon.requests.attached import Echo, Find, Identify, Record, Serve, Take
from meshnode.daemon.requests.node import Peers, Status
from meshnode.daemon.requests.services import Connect
from meshnode.daemon.requests.topics import Sub
from meshnode.discovery.resolver import Resolved
from meshnode.errors import ConfigError, MeshError, NodeClosed, NotFound, NotRunning
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import open_record
from meshnode.quic.stream import Stream
from meshnode.sdk.events import Event
from meshnode.sdk.service import Handler, is_goodbye
from meshnode.sdk.streams import MeshStream, wrap

if TYPE_CHECKING:
    from meshnode.daemon.attached.flow import LocalFlow
    from meshnode.directory.announcement import Instance
    from meshnode.stack.probe import Pinged

log = logging.getLogger("meshnode.services")

C = TypeVar("C", "ControlSocket", "LocalFlow")


class AttachedNode(AttachedPrimitives):
    """The running node of a home, as ``attach`` returns it: the methods of ``Node`` that programs need.

    Its streams go over the node's control socket, and survive what the node's streams survive. They end with
    ConnectionLost when the node stops. Policies and the audit log are about the node, whichever program it was.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._own: NodeId | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._is_closed = False

    async def __aenter__(self) -> AttachedNode:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Ask the node for its id. ``async with`` calls it.

        Raises:
            NotRunning: No node runs in this home.
            NodeClosed: ``close`` was called; so do all other methods then.
        """
        self._own = NodeId.parse((await ask_one(self._open, Status()))["id"])

    async def close(self) -> None:
        """Withdraw the services, and end their handlers.

        Other streams are their openers' to close. ``async with`` calls it; it may be called again.
        """
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _open(self) -> Path:
        """The home. Raises NodeClosed."""
        if self._is_closed:
            raise NodeClosed("this was closed", hint="attach again")
        return self._home

    @property
    def id(self) -> NodeId:
        """The node's id.

        Raises:
            NodeClosed: It was not started.
        """
        if self._own is None:
            raise NodeClosed("this is not attached yet", hint="async with meshnode.attach(home) as node")
        return self._own

    @property
    def address(self) -> str:
        """The node's overlay IPv6 address, as text.

        Raises:
            NodeClosed: It was not started.
        """
        return str(self.id.overlay)

    async def identify(self, peer: NodeId | str) -> NodeId:
        """Return the id that is meant by an id or a node's name.

        Args:
            peer: An id, its text or beginning, ``ID.mesh``, or a node's name.

        Raises:
            NotRunning: The node of this home has stopped.
            And as ``Node.identify``.
        """
        return NodeId.parse((await ask_one(self._open, Identify(str(peer))))["id"])

    async def resolve(self, peer: NodeId | str) -> Resolved:
        """Find the newest record of a peer; it is verified here too.

        Args:
            peer: As ``identify``.

        Returns:
            The record, the source that brought it first, and how long that took.

        Raises:
            As ``Node.resolve``, and NotRunning.
        """
        id = await self.identify(peer)
        told = await ask_one(self._open, Record(str(id)))
        record = open_record(base64.b64decode(told["encoded"]), SystemClock().wall(), expected=id)
        return Resolved(record, told["source"], told["ms"])

    async def find(self, service: str) -> list[Instance]:
        """Return the instances of a service on other nodes, as ``Node.find``.

        Args:
            service: The service's name.

        Returns:
            The instances, in the order in which ``open_any`` tries them.

        Raises:
            NotRunning: The node of this home has stopped.
            ConfigError: As ``Node.find``.
        """
        from meshnode.directory.announcement import Instance, Offer

        return [
            Instance(NodeId.parse(told.pop("node")), service, Offer(**told.pop("offer")), **told)
            async for told in ask(self._open, Find(service))
        ]

    async def ping(self, peer: NodeId | str, timeout: float = 2.0) -> Pinged:
        """Send one echo to a peer, as ``Node.ping``.

        Args:
            peer: The node, as for ``open``.
            timeout: Seconds to wait for the echo, and three round trips of the path at least; connecting has its own
                time.

        Returns:
            The round trip from the running node, None when the echo was lost, and the kind of path that it took;
            ``endpoint`` is None for a detour.

        Raises:
            NotRunning: The node of this home has stopped.
            And as ``Node.ping``.
        """
        from meshnode.base.address import parse_addr
        from meshnode.stack.probe import Pinged

        told = await ask_one(self._open, Echo(str(peer), timeout))
        endpoint = parse_addr(told["endpoint"]) if told["endpoint"] is not None else None
        return Pinged(told["rtt"], told["path"], endpoint)

    async def open(self, peer: NodeId | str, service: str) -> MeshStream:
        """Open a stream to a service of one node, as ``Node.open``.

        Args:
            peer: The node: an id, ``ID.mesh``, or a node's name.
            service: The service's name there.

        Returns:
            A reader and a writer, as those of ``Node.open``.

        Raises:
            NotRunning: The node of this home has stopped.
            And as ``Node.open``.
        """
        return wrap(*await self._carried(Connect(f"{peer}/{service}")))

    async def open_any(
        self, service: str, *, trusted: str | NodeId | Iterable[str | NodeId] | None = None
    ) -> MeshStream:
        """Open a stream to an instance of a service that works, as ``Node.open_any``.

        Args:
            service: The service's name.
            trusted: The nodes that may serve it, as ids or names, or ``"any"`` for every member.

        Returns:
            A reader and a writer, as ``open``.

        Raises:
            As ``Node.open_any``, and NotRunning.
        """
        if "/" in service:
            raise ConfigError("a service's name has no slash", hint="open(peer, service) is for one node")
        return wrap(*await self._carried(Connect(service, texts_of(trusted))))

    def serve(
        self,
        name: str,
        handler: Handler,
        allow: str | NodeId | Iterable[str | NodeId] = (),
        *,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AttachedService:
        """Serve a name, as ``Node.serve``, as long as this program runs.

        Args:
            name: The service's name.
            handler: A coroutine function of a reader, a writer and the peer's NodeId.
            allow: The nodes that may use it: an id, several ids, or ``"any"``.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it.
            limit: How many of its handlers run at once, as for ``Node.serve``.

        Returns:
            The service; ``await service.started()`` raises what the node refuses it with.
        """
        asked = Serve(name, texts_of(allow), announce, dict(meta or {}), limit)
        return self._served(asked, lambda take: self._handle(take, handler))

    def _served(self, asked: Serve, handle: Callable[[Take], Coroutine[Any, Any, None]]) -> AttachedService:
        home = self._open
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        started.add_done_callback(lambda done: done.cancelled() or done.exception())  # the program need not ask

        def on_end(task: asyncio.Task[None]) -> None:
            if not started.done():
                started.set_exception(NodeClosed("the service was closed"))

        def tell(task: asyncio.Task[None], error: BaseException) -> None:
            if isinstance(error, MeshError):  # the node has stopped: no fault of this program
                log.error("service %s is served no more: %s (%s)", asked.name, error, error.hint)
            else:
                _tell_loop(task, error)

        task = self._spawn(self._serve(home, asked, handle, started), tell)
        task.add_done_callback(on_end)
        return AttachedService(asked.name, task, started)

    async def _serve(
        self,
        home: Path,
        asked: Serve,
        handle: Callable[[Take], Coroutine[Any, Any, None]],
        started: asyncio.Future[None],
    ) -> None:
        try:
            async for told in ask(home, asked):
                if "stream" not in told:
                    started.set_result(None)
                    continue
                self._spawn(handle(Take(told["stream"], told["peer"], asked.name)))
        except MeshError as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _handle(self, take: Take, handler: Handler) -> None:
        try:
            stream, ends = await self._carried(take)
        except (NotFound, NotRunning):  # it was given up meanwhile, or the node has stopped
            return
        reader, writer = wrap(stream, ends)
        try:
            await handler(reader, writer, writer.peer)
        except BaseException as error:
            is_no_fault = isinstance(error, Exception) and is_goodbye(error, stream)
            stream.reset(ended=not isinstance(error, Exception))  # one that the handler has closed is delivered
            if not is_no_fault:
                raise
        else:
            writer.close()

    def _spawn(
        self, work: Any, tell: Callable[[asyncio.Task[None], BaseException], None] | None = None
    ) -> asyncio.Task[None]:
        """Run a service or a handler; what it raises is told to ``tell``, or else to the loop's exception handler."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None

        def on_end(task: asyncio.Task[None]) -> None:
            self._tasks.pop(task, None)
            if not task.cancelled() and (error := task.exception()) is not None and not self._is_closed:
                (tell or _tell_loop)(task, error)

        task.add_done_callback(on_end)
        return task

    async def join(self, topic: str, *, replay: int = 0) -> AttachedTopic:
        """Take part in a topic, as ``Node.join``.

        Args:
            topic: The name, 1 to 64 characters.
            replay: How many of the latest messages to receive first, 0 to 64.

        Returns:
            The topic; iterate it, ``publish`` to it, and ``leave`` it. ``lost`` counts what this program was too slow
            for.

        Raises:
            As ``Node.join``, and NotRunning.
        """
        messages = await begin(self._open, Sub(topic, replay))
        try:
            await anext(messages)
        except BaseException:
            messages.close()
            raise
        return AttachedTopic(self._home, topic, messages)

    def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens to the node from the first step on, as ``Node.events``.

        Raises:
            NotRunning: The node has stopped.
        """
        return AttachedEvents(self._open)

    async def status(self) -> Json:
        """Return what ``meshnode status --json`` prints.

        Raises:
            NotRunning: The node of this home has stopped.
        """
        return await ask_one(self._open, Status())

    async def peers(self) -> list[Json]:
        """Return the live peers as ``meshnode peers --json`` prints them.

        Raises:
            NotRunning: The node of this home has stopped.
        """
        return [peer async for peer in ask(self._open, Peers())]

    async def _carried(self, asked: Request) -> tuple[Stream, tuple[NodeId, NodeId]]:
        """Ask for a stream, and wait until the service has accepted it; with both ends. Raises MeshError."""
        own = self.id  # before anything is asked
        control, told = await self._answered(asked, ControlSocket)
        return control.begin(told), (own, NodeId.parse(told["peer"]))

    async def _answered(self, asked: Request, made: Callable[[socket.socket], C]) -> tuple[C, Json]:
        """Ask by a connection that carries it then; returns its end here, and the answer. Raises MeshError."""
        sock = connect(self._open, CONNECT_S)
        sock.setblocking(False)
        end = made(sock)
        control = end if isinstance(end, ControlSocket) else end.control
        try:
            return end, await control.ask(asked)
        except BaseException:
            control.close()
            raise


def _tell_loop(task: asyncio.Task[None], error: BaseException) -> None:
    context = {"message": "a service of an attached program failed", "exception": error, "task": task}
    task.get_loop().call_exception_handler(context)


def attach(home: str | os.PathLike[str] = "~/.meshnode") -> AttachedNode:
    """Return the running node of a home, for a program that is none of its own.

    Args:
        home: The directory that the node was started with.

    Returns:
        A node to be used by ``async with``, which raises NotRunning when no node runs there.

    Raises:
        ConfigError: The name is empty, or this user has no home directory.

    Example:

        async with meshnode.attach("~/.meshnode") as node:
            reader, writer = await node.open("laptop", "echo")
    """
    if not isinstance(home, str | os.PathLike) or not str(home) or "\0" in str(home):
        hint = "name the one that the node was started with, as ~/.meshnode"
        raise ConfigError("home is no name of a directory", hint=hint)
    return AttachedNode(expanded(Path(home)))
