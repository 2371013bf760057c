"""What a user sees of members that come, go and die: real processes, and the commands that watch them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.given_time import GivenTime, wait_for, within
from tests.live.copied_process import Process, command

ENV = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}


class Command:
    """A ``meshnode`` command that runs beside the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._seen: list[str] = []

    @classmethod
    async def begin(cls, home: Path, *args: str) -> Command:
        """Start one."""
        pipe = asyncio.subprocess.PIPE
        line = [sys.executable, "-m", "meshnode", "--home", str(home), *args]
        return cls(await asyncio.create_subprocess_exec(*line, stdin=pipe, stdout=pipe, stderr=pipe, env=ENV))

    async def until(self, **fields: str) -> float:
        """Read JSON lines until one has these fields; the seconds that it took."""
        began = GivenTime()
        try:
            async with within(20):
                while True:
                    event = json.loads(await self._line())
                    if all(event.get(key) == value for key, value in fields.items()):
                        return began.seconds
        except TimeoutError:
            raise AssertionError(f"no {fields} after\n" + "".join(self._seen)) from None

    async def until_alive(self, ids: set[str]) -> None:
        """Read JSON lines until all of them were said to be alive."""
        async with within(20):
            while ids:
                event = json.loads(await self._line())
                if event["event"] == "member" and event["status"] == "alive":
                    ids.discard(event["id"])

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the command has ended"
        self._seen.append(f"{time.monotonic():.3f} {line.decode()}")
        return line

    async def end(self, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, output and errors, once it has ended."""
        out, err = await wait_for(self.process.communicate(stdin), 30)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def interrupted(self) -> tuple[int, str, str]:
        """The same after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return await self.end()


async def _run(home: Path, *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
    code, out, errors = await command(home, *args, stdin=stdin)
    return code, out.decode(), errors.decode()


@pytest.fixture
async def five(tmp_path: Path) -> AsyncIterator[list[Process]]:
    """A seed and four nodes, of which b, c and d have names."""
    seed = Process(tmp_path / "s", "127.0.8.1", ["seed"])
    await seed.start()
    join = ["up", "--seed", f"{seed.id}@{seed.endpoint}"]
    nodes = [
        Process(tmp_path / name, f"127.0.8.{i}", [*join, "--name", f"node-{name}"]) for i, name in enumerate("abcd", 2)
    ]
    await asyncio.gather(*(node.start() for node in nodes))
    yield [seed, *nodes]
    await asyncio.gather(*(p.stop() for p in [seed, *nodes]))


async def _peers(node: Process) -> dict[str, Any]:
    status, out, _ = await _run(node.home, "peers", "--json")
    assert status == 0
    return {peer["id"]: peer for peer in map(json.loads, out.splitlines())}


async def test_a_node_that_is_killed_returns_and_leaves_is_seen_so_by_the_others(five: list[Process]) -> None:
    _, a, b, c, _ = five
    watch = await Command.begin(a.home, "watch", "--json")
    await watch.until_alive({node.id for node in five})
    target = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)  # well at each start
    where = target.sockets[0].getsockname()[1]
    await b.ask("expose", name="web", target=f"tcp://127.0.0.1:{where}", allow=["any"])
    await watch.until(event="service", id=b.id, change="up")

    b.kill()
    assert await watch.until(event="member", id=b.id, status="gone", name="node-b") < 6.0, "5 s, and a busy machine"
    await watch.until(event="service", id=b.id, change="down", name="node-b")
    assert (await _run(a.home, "services", "web"))[0] == 1
    assert (await _peers(a)).get(b.id, {"state": "suspended"})["state"] == "suspended"

    await b.start()
    await watch.until(event="member", id=b.id, status="alive", name="node-b")
    await watch.until(event="service", id=b.id, change="up", state="up")
    assert (await _run(a.home, "services", "web"))[0] == 0
    assert (await _run(a.home, "ping", b.id, "-c", "1"))[0] == 0
    assert (await _peers(a))[b.id]["state"] == "connected"

    await c.stop()
    assert await watch.until(event="member", id=c.id, status="left", name="node-c") < 1.5, "at once"
    assert c.id not in await _peers(a)
    status, _, errors = await watch.interrupted()
    assert (status, errors.strip()) == (130, "")
    target.close()


async def test_the_end_of_the_watched_node_is_told_in_a_line(five: list[Process]) -> None:
    _, a, b, *_ = five
    watches = [await Command.begin(a.home, "watch"), await Command.begin(a.home, "sub", "news")]
    as_json = await Command.begin(b.home, "watch", "--json")
    await as_json.until(event="member", id=a.id)
    assert watches[0].process.stdout is not None
    assert watches[1].process.stderr is not None
    await watches[0].process.stdout.readline()
    await watches[1].process.stderr.readline()
    await a.stop()
    for watch in watches:
        status, _, errors = await watch.end()
        assert status == 1
        assert errors.startswith("error: the node has stopped\n")
        assert "Traceback" not in errors
    b.kill()
    status, out, _ = await as_json.end()
    assert status == 1
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "not_running"


async def test_lines_of_the_input_are_messages_however_many_and_whatever_is_in_them(five: list[Process]) -> None:
    _, a, b, *_ = five
    count = 200
    sub = await Command.begin(a.home, "sub", "news", "-c", str(count + 3), "--json")
    shown = await Command.begin(a.home, "sub", "news", "-c", str(count + 3))
    for one in (sub, shown):
        assert one.process.stderr is not None
        assert b"joined" in await one.process.stderr.readline()
    lines = [b"line %d" % number for number in range(count)] + [b"\xff\x00", b"\x1b[31mred\rx", b"x" * 3072]
    began = GivenTime()
    status, out, _ = await _run(b.home, "pub", "news", "--json", stdin=b"\n".join(lines))
    assert status == 0
    assert len(out.splitlines()) == len(lines)
    assert began.seconds < 5.0
    _, out, _ = await sub.end()
    messages = [json.loads(line) for line in out.splitlines()]
    assert [m.get("text", m.get("base64")) for m in messages] == [*(x.decode() for x in lines[:-3]), "/wA="] + [
        x.decode() for x in lines[-2:]
    ]
    _, out, _ = await shown.end()
    assert len(out.splitlines()) == len(lines)
    assert "\x1b" not in out, "a message does not command the terminal"
    status, out, errors = await _run(b.home, "pub", "news", stdin=b"one\n" + b"x" * 3073 + b"\nthree\n")
    assert status == 1
    assert "3073" in errors


async def test_a_reader_that_has_enough_ends_the_command_without_a_word(five: list[Process]) -> None:
    _, a, b, *_ = five
    shell = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m meshnode --home {a.home} sub news | head -1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENV,
    )
    assert shell.stderr is not None
    assert b"joined" in await shell.stderr.readline()
    for number in range(3):
        assert (await _run(b.home, "pub", "news", f"m{number}"))[0] == 0
    out, errors = await wait_for(shell.communicate(), 20)
    assert out.endswith(b"  m0\n")
    assert errors == b""
