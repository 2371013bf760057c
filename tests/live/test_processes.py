"""Real processes and the command line: twelve nodes that know only a seed, which then dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshnode.daemon.client import RemoteError
from meshnode.demo import play, stage
from meshnode.demo.play import PEERS, SILENT_S, Echo, run_demo
from meshnode.demo.show import ENDS, Show
from tests import forked
from tests.given_time import HANG_S, GivenTime
from tests.live.copied_process import ENV, Process

NODES = 12
ECHOES = 4  # each is one datagram, which a busy machine may lose; a node that is not reached answers none


async def test_any_pings_any_by_key_also_when_the_seed_is_killed(tmp_path: Path) -> None:
    seed = Process(tmp_path / "seed", "127.0.4.1", ["seed"])
    await seed.start()
    nodes = [
        Process(tmp_path / f"n{i}", f"127.0.4.{i + 2}", ["up", "--seed", f"{seed.id}@{seed.endpoint}"])
        for i in range(NODES)
    ]
    try:
        await asyncio.gather(*(node.start() for node in nodes))

        async def ping(here: Process, there: Process) -> None:
            for _ in range(ECHOES):
                if (await here.ask("ping", id=there.id, count=1))["rtt_ms"] is not None:
                    return
            pytest.fail(f"of {ECHOES} echoes none was answered")

        for i in range(NODES):
            await ping(nodes[i], nodes[(i + 1) % NODES])
        await asyncio.sleep(1.0)  # contacts are on disk half a second after they are met, at first
        seed.kill()
        for i in range(NODES):
            await ping(nodes[i], nodes[(i + 5) % NODES])  # pairs that never met
        nodes[3].kill()
        again = Process(nodes[3].home, "127.0.4.99", nodes[3].args)
        nodes.append(again)
        await again.start()
        assert again.id == nodes[3].id
        await ping(again, nodes[8])
        await ping(nodes[10], again)
    finally:
        await asyncio.gather(*(p.stop() for p in [seed, *nodes]))


async def test_services_survive_kill_9_and_are_refused_to_others(tmp_path: Path) -> None:
    first = Process(tmp_path / "a", "127.0.4.120", ["up"])
    await first.start()
    again = Process(tmp_path / "a", "127.0.4.121", ["up"])
    try:
        await first.ask("expose", name="web", target="tcp://127.0.0.1:9", allow=["any"])
        forward = await first.ask("forward", listen="127.0.0.1:0", to=f"{first.id}/web")
        with pytest.raises(RemoteError) as caught:
            await first.ask("expose", name="bad", target="tcp://127.0.0.1:9", allow=["role:No Role"])
        assert caught.value.code == "config_error"
        first.kill()
        await asyncio.sleep(0.2)
        await again.start()
        status = await again.ask("status")
        assert [e["name"] for e in status["exposes"]] == ["web"]
        assert status["forwards"][0]["listen"] == forward["listen"]
    finally:
        await asyncio.gather(first.stop(), again.stop())


async def test_the_demo_waits_for_a_node_however_slowly_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "go")
    node = tmp_path / "python"
    node.write_text(f"""#!/bin/sh\nread go <{tmp_path}/go; echo '{{"id": "an id", "endpoints": ["here"]}}'\n""")
    node.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(node))
    processes = [stage.Process(tmp_path / "home", "127.0.4.130", ["up"])]
    starting = asyncio.create_task(play._start(processes, Show()))
    loop, hours = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + hours)
    while "0 of 1" not in capsys.readouterr().out:
        hours += 3600.0
        await asyncio.sleep(0)
    (tmp_path / "go").write_text("go\n")
    await starting
    assert processes[0].id == "an id"


async def test_numbers_that_come_slowly_are_waited_for_and_those_that_do_not_come_are_missing() -> None:
    echo = Echo(sent=6)
    monotonic, passed = time.perf_counter, 0.0

    def later() -> float:
        nonlocal passed
        passed += SILENT_S * 0.6
        if echo.received < 5:
            echo.received, echo.last = echo.received + 1, monotonic() + passed
        return monotonic() + passed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", later)
        assert await echo.settle() == 1


async def test_the_demo_loses_nothing() -> None:
    assert PEERS + 1 >= 8
    clock = GivenTime()
    moves = await run_demo(1, Show())
    assert tuple(move.end for move in moves) == ENDS
    assert all(move.lost == 0 and move.gap_ms < 1000 * (1 + clock.waited) for move in moves)


def _meshnode(*args: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshnode", "--home", str(home), *args]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=HANG_S, check=False)


def test_mistakes_get_a_hint_and_no_traceback(tmp_path: Path) -> None:
    for args, code in (
        (["status"], "not_running"),
        (["id"], "key_file_error"),
        (["up", "--listen", "nowhere"], "config_error"),
        (["up", "--seed", "x@y:1"], "config_error"),
        (["frobnicate"], "mesh_error"),
    ):
        done = forked.run(["--home", str(tmp_path), *args, "--json"], HANG_S, env=ENV)
        assert done.returncode != 0
        error = json.loads(done.stdout)["error"]
        assert error["code"] == code
        assert error["message"]
        assert error["hint"]
        plain = forked.run(["--home", str(tmp_path), *args], HANG_S, env=ENV)
        assert "Traceback" not in plain.stderr + done.stderr


def test_keygen_and_id_agree(tmp_path: Path) -> None:
    made = json.loads(_meshnode("keygen", "--json", home=tmp_path).stdout)
    shown = json.loads(_meshnode("id", "--json", home=tmp_path).stdout)
    assert made == shown
    assert set(made) == {"id", "address"}
    assert _meshnode("keygen", home=tmp_path).returncode == 1, "never replaces a key unasked"
