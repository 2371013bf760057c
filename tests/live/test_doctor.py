"""``doctor``, ``ping`` and ``peers`` of real processes on loopback: what a person and a script are told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.identity.keys import Identity
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import within
from tests.live.copied_process import Process, command

Json = dict[str, Any]
KEYS = {"findings", "nat", "peer"}


def _command(home: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "meshnode", *args, "--home", str(home)]


def _env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}


async def run(home: Path, *args: str) -> tuple[int, str, str]:
    """A command to its end: exit code, standard output and standard error."""
    code, out, err = await command(home, *args)
    assert b"Traceback" not in out + err
    return code, out.decode(), err.decode()


async def ask(home: Path, *args: str) -> Json:
    """One JSON object of a command that succeeds."""
    code, out, err = await run(home, *args, "--json")
    assert code == 0, (out, err)
    found: Json = json.loads(out)
    return found


def levels(found: Json, topic: str) -> list[str]:
    """The levels of a topic's findings, after a look at the shape of them all."""
    assert set(found) == KEYS
    for finding in found["findings"]:
        assert set(finding) == {"topic", "level", "text", "hint"}
        assert finding["level"] in ("ok", "note", "problem")
        assert finding["hint"] or finding["level"] != "problem"
    return [finding["level"] for finding in found["findings"] if finding["topic"] == topic]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[list[Process]]:
    """A seed and two nodes that know it."""
    seed = Process(tmp_path / "seed", "127.0.6.1", ["seed"])
    await seed.start()
    up = ["up", "--seed", f"{seed.id}@{seed.endpoint}"]
    nodes = [seed, *(Process(tmp_path / name, f"127.0.6.{n}", up) for n, name in ((2, "a"), (3, "b")))]
    try:
        await asyncio.gather(*(node.start() for node in nodes[1:]))
        await nodes[1].ask("ping", id=nodes[2].id, count=1)
        yield nodes
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def test_doctor_tells_of_the_network_and_of_peers_that_are_there_gone_and_unheard_of(mesh: list[Process]) -> None:
    seed, a, b = mesh
    found = await ask(a.home, "doctor")
    assert found["peer"] is None
    assert found["nat"]["filtering"] == "unknown"
    for topic in ("udp", "relays", "clock", "dht", "seeds"):
        assert levels(found, topic) == ["ok"], found["findings"]
    assert levels(found, "mdns") == ["note"]

    about = await ask(a.home, "doctor", b.id)
    assert levels(about, "path") == ["ok"]
    peer = about["peer"]
    assert (peer["id"], peer["connected"], peer["path"], peer["tunnel"]) == (b.id, True, "lan", False)
    assert peer["echo_ms"] is not None
    assert peer["record"]["endpoints"] == [b.endpoint]
    used = peer["candidates"][0]
    assert (used["in_use"], used["endpoint"], used["state"]) == (True, b.endpoint, "validated")
    assert any(candidate["path"] == "relay" for candidate in peer["candidates"]), "and what else was tried"
    assert peer["history"][0]["why"] in ("dial", "accepted"), "either end may have been the first"

    code, text, _ = await run(a.home, "doctor", b.id)
    assert code == 0
    assert f"reached on this network at {b.endpoint}" in text
    assert ("dialled" if peer["history"][0]["why"] == "dial" else "connected") in text

    stranger = str(Identity.generate().id)
    unheard = await ask(a.home, "doctor", stranger)
    assert levels(unheard, "peer") == ["problem"]
    assert unheard["peer"]["error"]["code"] == "not_found"

    b.kill()
    gone = await ask(a.home, "doctor", b.id)
    assert levels(gone, "path") == ["problem"], "it was connected a moment ago, and does not answer"
    fresh = Process(a.home.parent / "c", "127.0.6.4", ["up", "--seed", f"{seed.id}@{seed.endpoint}"])
    mesh.append(fresh)
    await fresh.start()
    dead = await ask(fresh.home, "doctor", b.id)
    assert levels(dead, "peer") == ["ok", "problem"], "its record is known, and no node is there"
    assert dead["peer"]["error"]["code"] == "no_path"
    tried = {attempt["endpoint"]: attempt["outcome"] for attempt in dead["peer"]["attempts"]}
    assert tried[b.endpoint].startswith("no answer to ")
    assert b.endpoint in " ".join(f["text"] for f in dead["findings"] if f["topic"] == "tried")


async def test_ping_and_peers_show_the_path_and_its_changes(mesh: list[Process]) -> None:
    _, a, b = mesh
    ping = asyncio.create_task(run(a.home, "ping", b.id, "-c", "8", "-i", "0.4"))
    await asyncio.sleep(1.2)
    moved = await b.ask("rebind", address="127.0.6.33:0")
    code, text, _ = await ping
    assert code == 0
    change = next(line for line in text.splitlines() if "->" in line)
    assert change.strip() == f"path: lan {b.endpoint} -> lan {moved['listen']} (the peer moved)"
    sent, answered = re.search(r"(\d) sent, (\d) answered", text).groups()  # type: ignore[union-attr]
    assert sent == "8"
    assert answered >= "6", "an echo that is under way when a socket goes may be lost"

    code, text, _ = await run(a.home, "ping", b.id, "-c", "1", "--json")
    echo = json.loads(text)
    assert {"seq", "rtt_ms", "path"} <= set(echo)
    assert (echo["path"], echo["endpoint"], echo["tunnel"]) == ("lan", moved["listen"], False)

    _, text, _ = await run(a.home, "peers")
    line = next(line for line in text.splitlines() if line.startswith(b.id))
    assert line.split()[1:3] == ["lan", moved["listen"]]
    assert "the peer moved" in line
    _, history, _ = await run(a.home, "peers", "--history")
    assert "dialled" in history
    _, one, _ = await run(a.home, "peers", b.id)
    assert one.startswith(b.id)
    assert "probes answered" in one
    assert "the peer moved" in one
    found = await ask(a.home, "peers", b.id)
    assert (found["id"], found["tunnel"]) == (b.id, False)
    stranger = str(Identity.generate().id)
    code, out, _ = await run(a.home, "peers", stranger, "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "not_found"
    assert "doctor" in json.loads(out)["error"]["hint"]


async def test_doctor_where_no_node_runs_says_so_and_what_it_can(tmp_path: Path) -> None:
    some = str(Identity.generate().id)
    (tmp_path / "meshnode.toml").write_text(f'seeds = ["{some}@127.0.0.1:1", "{some}@no-such-name.invalid:1"]')
    code, out, _ = await run(tmp_path, "doctor", "--json")
    assert code == 1
    found = json.loads(out)
    assert set(found) == KEYS | {"error"}
    assert found["error"]["code"] == "not_running"
    assert found["error"]["message"]
    assert found["error"]["hint"]
    topics = {(finding["topic"], finding["level"]) for finding in found["findings"]}
    assert {("node", "problem"), ("seeds", "ok"), ("seeds", "problem")} <= topics
    code, out, err = await run(tmp_path, "doctor")
    assert code == 1
    assert "no node runs" in out
    assert "error: no node runs" in err


async def test_a_wrong_id_is_the_usual_error(mesh: list[Process]) -> None:
    code, out, _ = await run(mesh[1].home, "doctor", "no id!", "--json")
    assert code == 1
    assert set(json.loads(out)) == {"error"}
    assert json.loads(out)["error"]["code"] == "invalid_id"


async def test_ctrl_c_ends_a_ping_with_its_summary_and_no_traceback(mesh: list[Process]) -> None:
    _, a, b = mesh
    process = await asyncio.create_subprocess_exec(
        *_command(a.home, "ping", b.id, "-c", "1000", "-i", "0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_env(),
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    async with within(10):
        out, err = await process.communicate()
    assert process.returncode == 130
    assert b"answered" in out
    assert b"Traceback" not in err


async def test_a_clock_that_is_wrong_is_seen_by_its_peers(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = await make_node(seed_role=True)
    here = await make_node(seed=seed)
    for node in (seed, here):
        runtime_of(node).sealer._born -= 60.0  # what is older than a process is dropped, and these are too young
    clock = runtime_of(seed).clock
    wall = clock.wall
    monkeypatch.setattr(type(clock), "wall", lambda self: wall() - (12.0 if self is clock else 0.0))
    runtime_of(seed).stack.tick(clock.monotonic())  # it notices that it was set, and forgets what it knew of others
    await here.ping(seed.id)
    assert here.status()["clock"]["offset_s"] == pytest.approx(-12.0, abs=1.0)
    assert seed.status()["clock"]["offset_s"] == pytest.approx(12.0, abs=1.0)
