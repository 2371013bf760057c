"""The process behind ``meshnode up``: a node, its services and the control socket (0600, one per home)."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import resource
import socket
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.files import make_private, why_unsafe
from meshnode.base.limits import CONTROL_REQUEST_S, MAX_CONTROL, MAX_CONTROL_SILENT, MIN_DESCRIPTORS
from meshnode.base.refusals import refused
from meshnode.config import Config
from meshnode.daemon.carry import Carried, carry
from meshnode.daemon.context import Daemon
from meshnode.daemon.orphans import reap_orphans
from meshnode.daemon.paths import socket_path, stand_in
from meshnode.daemon.request import Request, known_requests, parse
from meshnode.daemon.service_manager import notify, stay_alive
from meshnode.daemon.signals import handle_signals
from meshnode.errors import ConfigError, MeshError, StreamLimitError
from meshnode.runtime.acceptor import Accepted, Acceptor
from meshnode.runtime.descriptors import is_reserved
from meshnode.runtime.state_files import set_aside
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meshnode.daemon.carry_flow import CarriedFlow

    Results = AsyncGenerator[dict[str, Any] | Carried | CarriedFlow, None]

log = logging.getLogger("meshnode.daemon")

MAX_REQUEST = 1 << 16
READ = 1 << 14  # bytes read at once
TOO_MANY = StreamLimitError(
    f"the node carries {MAX_CONTROL} streams and requests of this host's programs already", hint="close some first"
)
TOO_LONG = ConfigError(
    f"the request is too long: it has more than {MAX_REQUEST >> 10} kB", hint="name fewer, or a role for many ids"
)
NO_DESCRIPTORS = StreamLimitError(
    "the node has no file descriptors left for another stream", hint="close some, or raise its limit: ulimit -n 4096"
)
ELSEWHERE = "set XDG_RUNTIME_DIR to a folder of this user, or use a shorter --home: this one is too long for a socket"


class ControlServer:
    """Server of the control socket. One request a connection: a line in, result lines and an end out."""

    def __init__(self, daemon: Daemon, home: Path, accepted: Accepted) -> None:
        """Make a server that does not listen yet; ``accepted`` is the node's counter of connections."""
        self._daemon = daemon
        self._home = home
        self._path = socket_path(home)
        self._accepted = accepted
        self._acceptor: Acceptor | None = None
        self._clients: dict[asyncio.Task[None], None] = {}
        self._silent: BoundedDict[asyncio.Task[None], socket.socket] = BoundedDict(MAX_CONTROL_SILENT)

    async def start(self) -> None:
        """Listen on the home's socket, which only this user can open (0600); elsewhere where the disk is read-only.

        This process holds the home's lock, so a socket that is there already was left by a dead one and is replaced.
        Raises ConfigError when others can write in its folder, and OSError when it cannot be made.
        """
        try:
            await self._listen()
        except OSError as error:
            if error.errno != errno.EROFS or self._path == (elsewhere := stand_in(self._home)):
                raise
            log.warning("the disk of %s is read-only: what changes is not saved", self._path.parent)
            self._path = elsewhere
            await self._listen()

    async def _listen(self) -> None:
        make_private(self._path.parent)
        if (unsafe := why_unsafe(self._path.parent)) is not None:
            raise ConfigError(unsafe[0], hint=ELSEWHERE if self._path == stand_in(self._home) else unsafe[1])
        if self._path.is_dir():
            set_aside(self._path, "it is a directory")
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            sock.bind(str(self._path))
            sock.listen(MAX_CONTROL)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
        loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(loop, self._accepted, [sock], self._on_connection, reserved=True)

    async def close(self) -> None:
        """Stop listening, end every client's answer, and remove the socket.

        Clients that wait see the end of the connection, and say that the node has stopped.
        """
        if self._acceptor is not None:
            self._acceptor.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with suppress(OSError):  # a disk that has become read-only
            self._path.unlink(missing_ok=True)

    def _on_connection(self, sock: socket.socket, source: Addr) -> None:
        """Serve a client. Clients that ask nothing push out one another, and none that has asked."""
        if len(self._clients) >= MAX_CONTROL:
            with sock, suppress(OSError):
                sock.send(json.dumps(TOO_MANY.to_json()).encode() + b"\n")
            return
        task = asyncio.get_running_loop().create_task(self._client(sock))
        self._clients[task] = None
        task.add_done_callback(lambda done: self._on_end(done, sock))
        pushed_out = self._silent.put(task, sock)
        if pushed_out is not None:
            pushed_out[0].cancel()

    def _on_end(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._clients.pop(task, None)
        self._silent.pop(task, None)
        if task.cancelled():
            sock.close()  # before it began
        elif (error := task.exception()) is not None:
            sock.close()
            log.error("a control client failed", exc_info=error)

    async def _client(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(CONTROL_REQUEST_S):
                line, sent = await _request_line(sock)
            self._silent.pop(task, None)
            if len(line) > MAX_REQUEST:
                await _write(sock, TOO_LONG.to_json())
                return
            await self._serve(line, sent, sock)
        except (ConnectionError, TimeoutError, asyncio.CancelledError) as error:
            log.debug("a control client went away: %r", error)
        finally:
            sock.close()

    async def _serve(self, line: bytes, sent: bytes, sock: socket.socket) -> None:
        try:
            asked = parse(line)
        except MeshError as error:
            await _write(sock, error.to_json())
            return
        if asked.carries and is_reserved(sock):
            await _write(sock, NO_DESCRIPTORS.to_json())
            return
        stream = await (self._answer_while_there if asked.carries or asked.endless else self._answer)(asked, sock)
        if isinstance(stream, Carried):
            await carry(sock, sent, stream)
        elif stream is not None:
            from meshnode.daemon.carry_flow import carry_flow

            await carry_flow(sock, sent, stream)

    async def _answer_while_there(self, asked: Request, sock: socket.socket) -> Carried | CarriedFlow | None:
        """Give an answer that may take any time, or has no end: over when the client goes away."""
        answering = asyncio.ensure_future(self._answer(asked, sock))
        leaving = asyncio.ensure_future(_until_gone(sock))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            return answering.result() if answering.done() else None
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, asked: Request, sock: socket.socket) -> Carried | CarriedFlow | None:
        """Write the results and the end, or the error; return a stream that is to be carried instead of the end."""
        try:
            async with aclosing(cast("Results", asked.answer(self._daemon))) as results:
                async for result in results:
                    if not isinstance(result, dict):
                        return result
                    await _write(sock, {"result": result})
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
        except Exception as error:  # a fault, and not the end of the node, which the client would take silence for
            log.error("%s failed", asked.method, exc_info=error)
            answer = MeshError(f"the node failed to do that: {error!r}", hint="its own output says where").to_json()
        await _write(sock, answer)
        return None


async def _request_line(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return the line of a request, and what came behind it; a line above ``MAX_REQUEST`` is not read to its end."""
    found = b""
    while len(found) <= MAX_REQUEST:
        more = await asyncio.get_running_loop().sock_recv(sock, READ)
        found += more
        line, end, rest = found.partition(b"\n")
        if end or not more:
            return line, rest
    return found, b""


async def _until_gone(sock: socket.socket) -> None:
    """Wait until a client that waits for its answer has gone; what it sends meanwhile is its stream's."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        loop.remove_reader(sock)
        if not readable.done():  # the wait may be given up in this turn of the loop
            readable.set_result(None)

    loop.add_reader(sock, on_readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)
    if sock.recv(1, socket.MSG_PEEK):
        await loop.create_future()


async def _write(sock: socket.socket, line: dict[str, Any]) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, json.dumps(line).encode() + b"\n")


def run(config: Config, ready: Callable[[Node], None]) -> None:
    """Run a node until SIGINT, SIGTERM or the end of its terminal; ``ready`` is called once it answers requests.

    SIGHUP otherwise has it read its policy again, SIGUSR1 and SIGUSR2 have it log its state. Raises MeshError when it
    cannot start; what happens later ends it no more.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= descriptors < MIN_DESCRIPTORS:  # RLIM_INFINITY is negative
        raise ConfigError(f"only {descriptors} file descriptors are allowed", hint="ulimit -n 4096")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the node's key and the mesh's
    known_requests()  # before the node starts: no import on its loop later
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(config, ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop: uvloop's where it is installed (``meshnode[uvloop]``), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(config: Config, ready: Callable[[Node], None]) -> None:
    stop, now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        (now if stop.is_set() else stop).set()

    async with Node(config) as node:
        book = ServiceBook(node)
        proxies = ProxyBook(node)
        daemon = Daemon(node, book, proxies)
        control = ControlServer(daemon, config.home_path, runtime_of(node).sockets.accepted)
        await control.start()
        try:
            await asyncio.gather(book.restore(), proxies.restore())  # both files are read before any request is
            handle_signals(loop, end, runtime_of(node).policy.read_again, lambda: _tell(node))
            ready(node)
            notify("READY=1")
            gc.collect()  # 0.7 MB that the start has left, else kept for ever
            gc.freeze()  # what a node starts with stays: the collector need not look at it again and again
            gc.enable()  # the command line started without
            helpers = asyncio.gather(stay_alive(), reap_orphans())
            await stop.wait()
            if config.drain:
                notify("STOPPING=1")
                await _first(book.drain(config.drain), now.wait())
            helpers.cancel()
        finally:
            notify("STOPPING=1")
            await control.close()
            await proxies.close()
            await book.close()


def _tell(node: Node) -> None:
    """Write a line of the node's state to the log."""
    status = node.status()
    wrong = "; ".join(status["degraded"]) or "nothing is wrong"
    log.info("up for %.0f s, %d peers: %s (`meshnode status` says more)", status["uptime_s"], status["peers"], wrong)


async def _first(*work: Coroutine[Any, Any, object]) -> None:
    """Run these until one has ended, then end the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
