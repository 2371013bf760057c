"""The audit log of running nodes: what they did is in it, at both ends, and a kill loses nothing acknowledged."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.errors import PolicyDenied
from meshnode.sdk.node import runtime_of
from tests.conftest import echo
from tests.live.cli_node import CliNode, run, stopping

QUIET = {"listen": "127.0.0.1:0", "mdns": False, "dht": False, "port_mapping": False}


def _export(home: Path) -> tuple[Path, list[dict[str, Any]]]:
    out = home.parent / f"{home.name}.jsonl"
    done = run(home, "audit", "export", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, [json.loads(line) for line in out.read_text().splitlines()]


def _of(entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["kind"] == kind]


async def test_both_ends_logs_agree_and_an_edited_one_is_found_out(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with meshnode.Node(meshnode.Config(home=here, **QUIET)) as server:
        server.serve("web", echo, allow="any")
        server.serve("mine", echo, allow=server.id)
        seed = f"{server.id}@{server.record.endpoints[0]}"
        async with meshnode.Node(meshnode.Config(home=there, seeds=(seed,), **QUIET)) as client:
            for _ in range(3):
                _, writer = await client.open(server.id, "web")
                writer.close()
            with pytest.raises(PolicyDenied):
                await client.open(server.id, "mine")
            ids = str(server.id), str(client.id)
            for node in (server, client):
                await runtime_of(node).audit.settled()
        await asyncio.sleep(0)
    (mine, mine_said), (theirs, theirs_said) = _export(here), _export(there)
    assert [e["side"] for e in _of(mine_said, "opened")] == ["acceptor"] * 3
    assert [e["side"] for e in _of(theirs_said, "opened")] == ["opener"] * 3
    assert _of(mine_said, "opened")[0]["rule"] == "allow list of web"
    assert [(e["act"], e["service"]) for e in _of(mine_said, "refused")] == [("service", "mine")]
    assert {e["session"] for e in _of(mine_said, "admitted")} == {e["session"] for e in _of(theirs_said, "admitted")}
    found = json.loads(run(here, "audit", "verify", "--json", "--against", str(theirs)).stdout)
    assert (found["ok"], found["matched"], found["mismatches"], found["node"]) == (True, 4, [], ids[0])
    page = tmp_path / "report.html"
    assert run(here, "audit", "export", "--html", str(page)).returncode == 0
    assert "The log holds" in page.read_text()
    assert "refused" in run(here, "audit", "show", "-n", "20").stdout
    segment = here / "audit" / "00000001.jsonl"
    segment.write_text(segment.read_text().replace('"service":"mine"', '"service":"none"'))
    bad = run(here, "audit", "verify", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["ok"] is False
    assert run(tmp_path, "audit", "verify", "--file", str(mine)).returncode == 0, "an export is checked anywhere"


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    node = CliNode(tmp_path / "node")
    with stopping(node):
        for version in range(1, 6):
            rules.write_text(f"version = {version}\n")
            node.ask("policy", "set", str(rules))
        node.process.kill()
        node.process.wait()
    verified = run(node.home, "audit", "verify", "--json")
    assert verified.returncode == 0
    _, entries = _export(node.home)
    assert [e["version"] for e in _of(entries, "policy") if e["policy"] == "local"] == [1, 2, 3, 4, 5]
