"""Ordinary bad days with real processes: paused, killed again and again, run in odd modes, given odd input."""

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

from tests.given_time import HANG_S, GivenTime, wait_for
from tests.homes import make_home
from tests.live.copied_process import Process, command

ENV = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
DEADLINE_S = 20.0


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """A seed, and a node that knows it."""
    there = Process(tmp_path / "there", "127.0.4.150", ["seed"])
    await there.start()
    here = Process(tmp_path / "here", "127.0.4.151", ["up", "--seed", f"{there.id}@{there.endpoint}"])
    await here.start()
    yield there, here
    for process in (there, here):
        os.kill(process.pid, signal.SIGCONT) if process._process and process._process.returncode is None else None
    await asyncio.gather(here.stop(), there.stop())


async def _upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
    writer.close()


@pytest.mark.parametrize("which", ["opener", "server"])
async def test_a_process_that_is_paused_goes_on_with_its_streams(pair: tuple[Process, Process], which: str) -> None:
    there, here = pair
    server = await asyncio.start_server(_upper, "127.0.0.1", 0)
    async with server:
        await there.ask("expose", name="x", target=str(server.sockets[0].getsockname()[1]), allow=["any"])
        listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/x"))["listen"]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
        writer.write(b"before\n")
        assert await wait_for(reader.readline(), DEADLINE_S) == b"BEFORE\n"
        paused = (here if which == "opener" else there).pid
        os.kill(paused, signal.SIGSTOP)
        for number in range(30):
            writer.write(b"line %d\n" % number)
            await asyncio.sleep(0.1)
        os.kill(paused, signal.SIGCONT)
        began = GivenTime()
        for number in range(30):
            assert await wait_for(reader.readline(), DEADLINE_S) == b"LINE %d\n" % number
        assert began.seconds < 2.0
        writer.close()


async def test_a_peer_that_crashes_again_and_again_is_reached_soon_after_each_start(
    pair: tuple[Process, Process],
) -> None:
    there, here = pair
    await there.stop()
    there.args = ["up", "--seed", f"{here.id}@{here.endpoint}"]
    for _ in range(4):
        await there.start()
        began = GivenTime()
        while (await here.ask("ping", id=there.id, count=1))["rtt_ms"] is None:
            assert began.seconds < 6.0
        there.kill()
        assert there._process is not None
        await there._process.wait()


async def test_a_reader_of_a_topic_that_is_stopped_holds_up_no_other_one(pair: tuple[Process, Process]) -> None:
    there, here = pair
    third = Process(here.home.parent / "third", "127.0.4.153", ["up", "--seed", f"{there.id}@{there.endpoint}"])
    await third.start()
    readers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshnode", "sub", "news", "--json", "--home", str(node.home)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENV,
        )
        for node in (here, there)
    ]
    try:
        stopped, reading = readers
        assert reading.stdout is not None
        for reader in readers:  # one that is stopped before it has joined gets nothing, rightly
            assert reader.stderr is not None
            assert (await wait_for(reader.stderr.readline(), DEADLINE_S)).startswith(b"joined news")
        stopped.send_signal(signal.SIGSTOP)
        lines = b"".join(b"%d %s\n" % (number, b"m" * 1500) for number in range(600))
        status, _, errors = await command(third.home, "pub", "news", "-", stdin=lines)
        assert (status, errors) == (0, b"")
        got = [json.loads(await wait_for(reading.stdout.readline(), DEADLINE_S)) for _ in range(600)]
        assert len(got) == 600
        assert (await here.ask("status"))["id"] == here.id
        stopped.send_signal(signal.SIGCONT)
        assert stopped.stdout is not None
        assert await wait_for(stopped.stdout.readline(), DEADLINE_S)
    finally:
        for reader in readers:
            reader.kill()
            await reader.communicate()
        await third.stop()


PROGRAM = """
import asyncio, sys, meshnode
async def main(home):
    async def echo(reader, writer, peer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    quiet = dict(mdns=False, port_mapping=False, listen="127.0.0.1:0")
    async with meshnode.Node(meshnode.Config(home=home + "/a", **quiet)) as there:
        there.serve("echo", echo, allow="any")
        seed = f"{there.id}@{there.record.endpoints[0]}"
        async with meshnode.Node(meshnode.Config(home=home + "/b", seeds=(seed,), **quiet)) as here:
            async with await here.open(there.id, "echo") as (reader, writer):
                writer.write(b"x" * 1_000_000)
                writer.write_eof()
                got = len(await reader.read())
            await here.rebind("127.0.0.2:0")
            async with await here.open(there.id, "echo") as (reader, writer):
                writer.write(b"moved")
                print(got, (await reader.readexactly(5)).decode(), flush=True)
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main(sys.argv[1]))
else:
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("mode", "flags"),
    [("-O", ["-O"]), ("development, warnings are errors", ["-X", "dev", "-W", "error"]), ("uvloop", [])],
)
def test_a_program_runs_in_silence_in_every_mode_of_the_interpreter(
    tmp_path: Path, mode: str, flags: list[str]
) -> None:
    if mode == "uvloop":
        pytest.importorskip("uvloop")
    for name in "ab" if "dev" not in flags else "":  # that one makes its keys itself
        make_home(tmp_path / name)
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, str(tmp_path), mode],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=ENV,
    )
    slow = "took"  # asyncio's debug mode tells of steps of more than 0.1 s: a busy machine is no mistake
    assert done.stdout == "1000000 moved\n", done.stderr
    assert [line for line in done.stderr.splitlines() if slow not in line] == []


ODD: dict[str, tuple[list[str], bytes, int]] = {
    "5 MB in a line": (["pub", "news", "-"], b"x" * 5_000_000, 1),
    "a message too long": (["pub", "news", "x" * 3073], b"", 1),
    "an empty message": (["pub", "news", ""], b"", 0),
    "a topic too long": (["pub", "t" * 300, "x"], b"", 1),
    "a service too long": (["expose", "s" * 300, "1", "--allow", "any"], b"", 1),
    "a limit of none": (["expose", "s", "1", "--allow", "any", "--limit", "0"], b"", 2),
    "all bytes": (["pub", "news", "-"], bytes(range(256)) * 4, 0),
    "a node that is unknown": (["ping", "a" * 52, "-c", "1"], b"", 1),
    "a name that is no text": (["ping", "\udcff\udcfe", "-c", "1"], b"", 1),
}


async def test_odd_input_is_carried_or_refused_in_a_line_and_the_node_goes_on(pair: tuple[Process, Process]) -> None:
    _, here = pair
    done = await asyncio.gather(*(command(here.home, *args, "--json", stdin=given) for args, given, _ in ODD.values()))
    assert dict(zip(ODD, (code for code, *_ in done), strict=True)) == {name: code for name, (*_, code) in ODD.items()}
    assert not any(b"Traceback" in out + errors for _, out, errors in done)
    assert (await here.ask("status"))["id"] == here.id


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="a process can be number 1 of a PID namespace for root alone")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_is_the_first_process_of_a_container_ends_at_once(tmp_path: Path, number: int) -> None:
    inside = ["unshare", "-p", "--fork", "--mount-proc", "--kill-child=SIGKILL", sys.executable, "-m", "meshnode"]
    start: dict[str, Any] = {"stdout": subprocess.PIPE, "env": ENV}
    options = ["--home", str(tmp_path / "home"), "--json", "--no-mdns", "--listen", "127.0.4.152:0"]
    run = await asyncio.create_subprocess_exec(*inside, "up", *options, **start)
    try:
        assert run.stdout is not None
        assert json.loads(await wait_for(run.stdout.readline(), DEADLINE_S))["id"]
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        began = GivenTime()
        os.kill(int(children[0]), number)
        assert await wait_for(run.wait(), DEADLINE_S) == 0
        assert began.seconds < 3.0
    finally:
        if run.returncode is None:
            run.kill()
            await run.communicate()
