"""Services, names and topics from the command line, with real processes; an instance in use is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.services import Calls, Instances
from tests.given_time import status_of, wait_for, within
from tests.live.copied_process import Process, command


def _command(home: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "meshnode", "--home", str(home), *args]


ENV = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}


async def _run(home: Path, *args: str, stdin: bytes = b"") -> tuple[int, str]:
    code, out, _ = await command(home, *args, stdin=stdin)
    return code, out.decode()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[Process]]:
    """A seed and two nodes; one is called laptop."""
    seed = Process(tmp_path / "s", "127.0.5.1", ["seed"])
    await seed.start()
    join = ["up", "--seed", f"{seed.id}@{seed.endpoint}"]
    nodes = [
        Process(tmp_path / "a", "127.0.5.2", [*join, "--name", "laptop"]),
        Process(tmp_path / "b", "127.0.5.3", join),
    ]
    await asyncio.gather(*(node.start() for node in nodes))
    yield [seed, *nodes]
    await asyncio.gather(*(p.stop() for p in [seed, *nodes]))


async def test_what_is_exposed_is_listed_watched_and_reached_by_name(three: list[Process]) -> None:
    seed, laptop, other = three
    watch = subprocess.Popen(_command(seed.home, "watch", "--json"), stdout=subprocess.PIPE, env=ENV)
    await laptop.ask("expose", name="web", target="tcp://127.0.0.1:9", allow=["any"], meta={"v": "1"})
    status, out = await _run(other.home, "services", "web", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["id"], found["name"], found["meta"], found["service"]) == (laptop.id, "laptop", {"v": "1"}, "web")
    assert (await _run(other.home, "services", "nothing"))[0] == 1
    assert "laptop" in (await _run(other.home, "services"))[1]
    assert (await other.ask("ping", id="laptop.mesh", count=1))["rtt_ms"] is not None
    assert (await other.ask("resolve", id="laptop"))["record"]["id"] == laptop.id
    assert (await other.ask("forget", name="laptop")) == {"name": "laptop"}
    await laptop.ask("unexpose", name="web")
    assert watch.stdout is not None
    seen: list[Any] = []
    async with within(15):
        while not any(e.get("change") == "down" for e in seen):
            seen.append(json.loads(await asyncio.to_thread(watch.stdout.readline)))
    assert {e["id"] for e in seen if e["event"] == "member"} == {seed.id, laptop.id, other.id}
    assert next(e["change"] for e in seen if e.get("service") == "web") == "up"
    watch.send_signal(signal.SIGINT)
    assert status_of(watch, 10) == 130
    watch.stdout.close()


async def test_a_line_that_is_published_comes_to_those_that_joined(three: list[Process]) -> None:
    seed, a, b = three
    subs = [
        await asyncio.create_subprocess_exec(
            *_command(node.home, "sub", "news", "-c", "3", "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENV,
        )
        for node in (seed, a)
    ]
    for sub in subs:
        assert sub.stderr is not None
        assert b"joined" in await sub.stderr.readline()
    assert (await _run(b.home, "pub", "news", "hello"))[0] == 0
    status, out = await _run(b.home, "pub", "news", "-", "--json", stdin=b"two\nthree\n")
    assert status == 0
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [2, 3]
    for sub in subs:
        lines, _ = await wait_for(sub.communicate(), 20)
        messages = [json.loads(line) for line in lines.splitlines()]
        assert [m["text"] for m in messages] == ["hello", "two", "three"]
        assert {m["sender"] for m in messages} == {b.id}
        assert messages[-1]["lost"] == 0
    assert (await _run(b.home, "pub", "news", "x" * 3073))[0] == 1
    status, out = await _run(seed.home, "sub", "news", "--replay", "2", "-c", "2", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["two", "three"]


async def _calls_in_a_second(calls: Calls) -> int:
    before = calls.answered
    await calls.run(1.0)
    return calls.answered - before


@pytest.mark.parametrize("how", ["open", "forward"])
async def test_calls_go_on_when_the_instance_in_use_is_killed(tmp_path: Path, how: str) -> None:
    async with Instances(tmp_path, 3) as mesh, Calls(mesh, how) as calls:
        usual = await _calls_in_a_second(calls)  # 100 on an idle machine
        assert usual > 0
        killed = await mesh.kill(calls.last_served)
        await calls.run(3.0)
        assert calls.longest_silence < 2.5
        assert killed not in calls.served_recently
        async with within(60):  # a busy machine may take away some of these seconds, not all
            while await _calls_in_a_second(calls) < usual / 2:
                assert calls.last_served != killed


async def test_a_node_that_exposes_a_dead_target_is_passed_over_and_said_to_fail(three: list[Process]) -> None:
    seed, broken, well = three

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"well")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await broken.ask("expose", name="db", target="tcp://127.0.0.1:9", allow=["any"])
    await well.ask("expose", name="db", target=f"tcp://127.0.0.1:{port}", allow=["any"])
    async with within(15):
        while len((await _run(seed.home, "services", "db"))[1].splitlines()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    forward = await seed.ask("forward", listen="127.0.0.1:0", to="db", trusted=["any"])
    host, _, where = forward["listen"].rpartition(":")
    for _ in range(8):
        reader, writer = await asyncio.open_connection(host, int(where))
        async with within(10):
            assert await reader.read() == b"well"
        writer.close()
    _, out = await _run(seed.home, "services", "db", "--json")
    states = {item["id"]: item["state"] for item in map(json.loads, out.splitlines())}
    assert states[well.id] == "up"
    assert states[broken.id] in ("failing", "failed", "up"), "it may not have been asked"
    server.close()
