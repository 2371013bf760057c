"""Calls of this package's functions on the ways that every byte takes, of two real nodes on loopback.

``python -m bench.calls [ENGINE]`` prints each call, indented by depth. ``files`` are those that a reader visits,
``folders`` how often control crosses from one folder of the package to another. The smallest of several rounds counts:
timers that fire in between are not the flow's.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import meshnode
from meshnode.sdk.node import runtime_of

ROOT = f"{Path(meshnode.__file__).parent}/"
ROUNDS = 5
QUIET = {"listen": "127.0.0.1:0", "mdns": False, "dht": False, "gossip": False, "port_mapping": False}


@dataclass
class Flow:
    """The calls between two moments."""

    calls: list[tuple[int, str, str]] = field(default_factory=list)  # depth, file, function

    def files(self) -> int:
        """Return how many files the calls are in."""
        return len({path for _, path, _ in self.calls})

    def folders(self) -> int:
        """Return how often two calls in a row are in different folders."""
        return sum(one[1].split("/")[0] != two[1].split("/")[0] for one, two in pairwise(self.calls))

    def __enter__(self) -> Flow:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(ROOT):
            return
        depth, caller = 0, frame.f_back
        while caller is not None:
            depth += caller.f_code.co_filename.startswith(ROOT)
            caller = caller.f_back
        name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        self.calls.append((depth, path[len(ROOT) :], name))


async def _flows(engine: str) -> dict[str, Flow]:
    settings: dict[str, Any] = {**QUIET, "engine": engine}
    found: dict[str, Flow] = {}

    def keep(what: str, flow: Flow) -> None:
        if what not in found or len(flow.calls) < len(found[what].calls):
            found[what] = flow

    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as other:
        async with meshnode.Node(meshnode.Config(home=home, **settings)) as server:
            seed = f"{server.id}@{server.record.endpoints[0]}"
            async with meshnode.Node(meshnode.Config(home=other, seeds=(seed,), **settings)) as client:
                arrived = asyncio.Event()

                async def read(reader: Any, writer: Any, peer: Any) -> None:
                    while await reader.read(65_536):
                        arrived.set()

                server.serve("bytes", read, allow=["any"])
                await asyncio.sleep(0.3)
                _, writer = await client.open(server.id, "bytes")
                for _ in range(ROUNDS):
                    await asyncio.sleep(0.3)
                    with Flow() as flow:
                        writer.write(b"x" * 100)
                        await asyncio.sleep(0)  # the flush
                    keep("write of 100 B, to sendto", flow)
                    await asyncio.sleep(0.3)
                    arrived.clear()
                    writer.write(b"y" * 100)
                    runtime_of(client).stack.flush(asyncio.get_running_loop().time())
                    with Flow() as flow:
                        await arrived.wait()
                    keep("datagram, to its reader", flow)

                async def answer(reader: Any, writer: Any, peer: Any) -> None:
                    writer.write(await reader.read())
                    writer.write_eof()

                server.serve("answers", answer, allow=["any"])
                for _ in range(ROUNDS):
                    await asyncio.sleep(0.3)
                    with Flow() as flow:
                        reader, writer = await client.open(server.id, "answers")
                        writer.write(b"z" * 100)
                        writer.write_eof()
                        await reader.read()
                        writer.close()
                        await asyncio.sleep(0)
                    keep("stream with a request and its answer, both ends", flow)
    return found


def run(engine: str = "auto") -> list[tuple[str, int, int, int]]:
    """Return flow, calls, files and folder changes."""
    flows = asyncio.run(_flows(engine))
    return [(what, len(flow.calls), flow.files(), flow.folders()) for what, flow in flows.items()]


def main() -> None:
    """Print the flows."""
    for what, flow in asyncio.run(_flows((sys.argv[1:] or ["auto"])[0])).items():
        print(f"{what}: {len(flow.calls)} calls, {flow.files()} files, {flow.folders()} changes of folder")
        for depth, path, name in flow.calls:
            print(f"  {'  ' * depth}{path}:{name}")


if __name__ == "__main__":
    main()
