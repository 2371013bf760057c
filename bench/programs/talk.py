"""Servers and clients in Python that ``bench.programs`` runs on its hosts: ``python -m bench.programs.talk WHAT``."""

from __future__ import annotations

import asyncio
import http.server
import importlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
STEP_S = 0.02


# ---- servers


def files(port: str, folder: str) -> None:
    """Serve the files of a folder by HTTP."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    http.server.ThreadingHTTPServer((LOOPBACK, int(port)), handler).serve_forever()


class _Git(http.server.BaseHTTPRequestHandler):
    """``git http-backend``, which is a CGI program."""

    protocol_version = "HTTP/1.1"
    root = ""

    def do_GET(self) -> None:
        """Answer."""
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        about = {
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        pipe = subprocess.PIPE
        command = ["git", "http-backend"]
        backend = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | about, bufsize=0)
        assert backend.stdin is not None
        assert backend.stdout is not None
        with backend:
            backend.stdin.write(body)
            backend.stdin.close()
            self.send_response(200)
            while line := backend.stdout.readline().strip():
                name, _, value = line.decode().partition(": ")
                self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            while data := os.read(backend.stdout.fileno(), 1 << 16):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    do_POST = do_GET


def git(port: str, folder: str) -> None:
    """Serve the repositories of a folder."""
    _Git.root = folder
    http.server.ThreadingHTTPServer((LOOPBACK, int(port)), _Git).serve_forever()


def names(port: str, log: str) -> None:
    """Answer each question with its own name as text, and write it down."""
    import dnslib
    import dnslib.server

    class Answers(dnslib.server.BaseResolver):  # type: ignore[misc]
        def resolve(self, request: Any, handler: Any) -> Any:
            reply = request.reply()
            reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.TXT, rdata=dnslib.TXT(str(request.q.qname))))
            with Path(log).open("a") as file:
                file.write(f"{request.q.qname}\n")
            return reply

    quiet = dnslib.server.DNSLogger("-request,-reply,-truncated,-error", False)
    dnslib.server.DNSServer(Answers(), address=LOOPBACK, port=int(port), logger=quiet).start()


def web(port: str) -> None:
    """Serve a FastAPI app: a number a request, a stream of bytes, and events (SSE)."""
    import fastapi
    import fastapi.responses
    import uvicorn

    app = fastapi.FastAPI()

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    @app.get("/events/{count}")
    async def events(count: int) -> Any:
        async def told() -> Any:
            for number in range(count):
                yield f"id: {number}\ndata: {number}\n\n"
                await asyncio.sleep(STEP_S)

        return fastapi.responses.StreamingResponse(told(), media_type="text/event-stream")

    @app.get("/bytes/{count}")
    async def octets(count: int) -> Any:
        async def told() -> Any:
            for number in range(count):
                yield bytes([number % 256]) * 100_000

        return fastapi.responses.StreamingResponse(told())

    uvicorn.run(app, host=LOOPBACK, port=int(port), log_level="warning", timeout_keep_alive=60)


def websocket(port: str) -> None:
    """Echo."""
    from websockets.asyncio.server import serve

    async def handle(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def run() -> None:
        async with serve(handle, LOOPBACK, int(port)) as server:
            await server.serve_forever()

    asyncio.run(run())


def grpc(port: str) -> None:
    """Send back what comes on a call that goes both ways."""
    library: Any = importlib.import_module("grpc")

    async def both(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request

    async def run() -> None:
        server = library.aio.server()
        handlers = {"Both": library.stream_stream_rpc_method_handler(both)}
        server.add_generic_rpc_handlers([library.method_handlers_generic_handler("test.Service", handlers)])
        server.add_insecure_port(f"{LOOPBACK}:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def tools(log: str) -> None:
    """Be an MCP server on stdin and stdout with a tool that takes its time; each start is a line of the log."""
    from mcp.server import MCPServer

    with Path(log).open("a") as file:
        file.write("started\n")
    server = MCPServer("tools")

    @server.tool()
    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    server.run("stdio")


# ---- clients: each prints the numbers that came back


async def use_websocket(port: str, count: str) -> None:
    """Send a number each 20 ms, and print what comes back."""
    from websockets.asyncio.client import connect

    async with connect(f"ws://{LOOPBACK}:{port}") as connection:
        for number in range(int(count)):
            await connection.send(str(number))
            print(await connection.recv())
            await asyncio.sleep(STEP_S)


async def use_grpc(port: str, count: str) -> None:
    """Send a number each 20 ms on one call, and print what comes back."""
    library: Any = importlib.import_module("grpc")

    async def numbers() -> Any:
        for number in range(int(count)):
            yield str(number).encode()
            await asyncio.sleep(STEP_S)

    async with library.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        async for answer in channel.stream_stream("/test.Service/Both")(numbers()):
            print(answer.decode())


async def use_httpx2(home: str, service: str, count: str) -> None:
    """Ask a FastAPI app for a number each 20 ms by the adapter, and in between for one long answer."""
    import httpx2

    import meshnode
    from meshnode.ext.httpx2 import MeshTransport

    base = f"http://{service}.server.mesh"
    async with (
        meshnode.attach(home) as node,
        httpx2.AsyncClient(transport=MeshTransport(node), base_url=base, timeout=30) as client,
    ):

        async def whole() -> int:
            size = 0
            async with client.stream("GET", "/bytes/500") as answer:
                async for data in answer.aiter_bytes():
                    size += len(data)
            return size

        reading = asyncio.create_task(whole())
        for number in range(int(count)):
            print((await client.get(f"/number/{number}")).json())
            await asyncio.sleep(STEP_S)
        print("bytes", await reading)


async def use_tools(home: str, to: str, seconds: str) -> None:
    """Call the tool through ``meshnode mcp connect``, as an agent does."""
    import mcp

    arguments = ["-m", "meshnode", "--home", home, "mcp", "connect", to]
    async with mcp.Client(mcp.StdioServerParameters(command=sys.executable, args=arguments)) as client:
        started = time.monotonic()
        result: Any = await client.call_tool(
            "work", {"seconds": float(seconds)}, read_timeout_seconds=float(seconds) + 30
        )
        print(result.content[0].text, f"{time.monotonic() - started:.2f}")


SERVERS = {f.__name__: f for f in (files, git, names, web, websocket, grpc, tools)}
CLIENTS = {f.__name__: f for f in (use_websocket, use_grpc, use_httpx2, use_tools)}

if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what in SERVERS:
        SERVERS[what](*arguments)
    else:
        asyncio.run(CLIENTS[what](*arguments))
