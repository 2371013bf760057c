"""Real processes and the command line: twelve nodes that know only a seed, which then dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.daemon.client import RemoteError
from meshnode.demo.play import PEERS, run_demo
from meshnode.demo.show import ENDS, Show
from meshnode.demo.stage import Process

NODES = 12


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
            echo = await here.ask("ping", id=there.id, count=1)
            assert echo["rtt_ms"] is not None

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


async def test_the_demo_loses_nothing() -> None:
    assert PEERS + 1 >= 8
    moves = await run_demo(1, Show())
    assert tuple(move.end for move in moves) == ENDS
    assert all(move.lost == 0 and move.gap_ms < 1000 for move in moves)


def _meshnode(*args: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
    command = [sys.executable, "-m", "meshnode", "--home", str(home), *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)


def test_mistakes_get_a_hint_and_no_traceback(tmp_path: Path) -> None:
    for args, code in (
        (["status"], "not_running"),
        (["id"], "key_file_error"),
        (["up", "--listen", "nowhere"], "config_error"),
        (["up", "--seed", "x@y:1"], "config_error"),
        (["frobnicate"], "mesh_error"),
    ):
        done = _meshnode(*args, "--json", home=tmp_path)
        assert done.returncode != 0
        error = json.loads(done.stdout)["error"]
        assert error["code"] == code
        assert error["message"]
        assert error["hint"]
        plain = _meshnode(*args, home=tmp_path)
        assert "Traceback" not in plain.stderr + done.stderr


def test_keygen_and_id_agree(tmp_path: Path) -> None:
    made = json.loads(_meshnode("keygen", "--json", home=tmp_path).stdout)
    shown = json.loads(_meshnode("id", "--json", home=tmp_path).stdout)
    assert made == shown
    assert set(made) == {"id", "address"}
    assert _meshnode("keygen", home=tmp_path).returncode == 1, "never replaces a key unasked"
