"""An HTTPS proxy for tests: CONNECT only, perhaps with basic credentials, perhaps slow.

Prints one JSON line when it listens, and one for each tunnel that was asked for, with the status that it got.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import sys

CHUNK = 16_384
HEAD_TIMEOUT_S = 10.0
REASONS = {400: "Bad Request", 405: "Method Not Allowed", 407: "Proxy Authentication Required", 502: "Bad Gateway"}


class Pace:
    """Lets bytes pass at a rate, all tunnels and both directions together; 0 means unlimited."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def wait(self, count: int) -> None:
        """Return when so many bytes may pass."""
        if self._rate:
            now = asyncio.get_running_loop().time()
            self._free_at = max(self._free_at, now) + count / self._rate
            await asyncio.sleep(self._free_at - now)


class Proxy:
    """Answers CONNECT."""

    def __init__(self, credentials: str | None, rate: int) -> None:
        self._token = None if credentials is None else base64.b64encode(credentials.encode()).decode()
        self._pace = Pace(rate)

    def _status(self, head: bytes) -> tuple[int, str, int]:
        """The status that a request deserves, and whither it wants to go."""
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        if method != "CONNECT":
            return 405, "", 0
        host, _, port = rest.partition(" ")[0].rpartition(":")
        if not host or not port.isdigit():
            return 400, "", 0
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if self._token is not None and headers.get("proxy-authorization") != f"Basic {self._token}":
            return 407, host, int(port)
        return 200, host.strip("[]"), int(port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT_S)
            status, host, port = self._status(head)
            there = None
            if status == 200:
                try:
                    there = await asyncio.open_connection(host, port)
                except OSError:
                    status = 502
            print(json.dumps({"status": status, "to": f"{host}:{port}"}), flush=True)
            if there is None:
                ask = "Proxy-Authenticate: Basic realm=lab\r\n" if status == 407 else ""
                writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\n{ask}Content-Length: 0\r\n\r\n".encode())
                await writer.drain()
                return
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there[1]))
                both.create_task(self._pump(there[0], writer))
            there[1].close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._pace.wait(len(data))
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


async def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--credentials")
    parser.add_argument("--rate", type=int, default=0)
    args = parser.parse_args()
    proxy = Proxy(args.credentials, args.rate)
    host, _, port = args.listen.rpartition(":")
    await asyncio.start_server(proxy.serve, host, int(port))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    print(json.dumps({"ready": True}), flush=True)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
