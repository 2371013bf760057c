"""An agent hands on less than it has, offline: no authority's key, no node that runs; and the mesh holds it to that."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.sdk.node import runtime_of
from tests.live.cli_node import run


def _said(home: Path, *args: str) -> dict[str, Any]:
    done = run(home, *args, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    return found


def _refused(home: Path, *args: str) -> str:
    done = run(home, *args, "--json")
    assert done.returncode != 0, done.stdout
    return str(json.loads(done.stdout.splitlines()[-1])["error"]["message"])


def _config(home: Path, seed: meshnode.Node | None = None) -> meshnode.Config:
    seeds = (f"{seed.id}@{seed.record.endpoints[0]}",) if seed is not None else None
    return meshnode.Config.load(
        home, {"listen": "127.0.0.1:0", "mdns": False, "port_mapping": False, "seeds": seeds}, env={}
    )


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Path]:
    """An authority's home, and those of an agent that may hand on, of its worker, and of the worker's own."""
    found = {name: tmp_path / name for name in ("authority", "agent", "worker", "helper")}
    _said(found["authority"], "mesh", "create", "field")
    for name in ("agent", "worker", "helper"):  # a ticket without a role brings the mesh's secret
        ticket = _said(found["authority"], "invite")["ticket"]
        _said(found[name], "join", ticket)
    agent = _said(found["agent"], "id")["id"]
    file = str(tmp_path / "agent.grant")
    rights = ("--role", "reader", "--role", "web", "--service", "docs", "--service", "ci*", "--lifetime", "1h")
    _said(found["authority"], "grant", "issue", agent, *rights, "--depth", "2", "--out", file)
    _said(found["agent"], "grant", "install", file)
    return found


def _hand_on(homes: dict[str, Path], giver: str, taker: str, *rights: str) -> dict[str, Any]:
    file = str(homes[taker].parent / f"{taker}.grant")
    node = _said(homes[taker], "id")["id"]
    made = _said(homes[giver], "grant", "issue", node, *rights, "--out", file)
    _said(homes[taker], "grant", "install", file)
    return made


async def _reaches(node: meshnode.Node, server: meshnode.Node, service: str) -> bool:
    try:
        reader, _ = await node.open(server.id, service)
    except meshnode.PolicyDenied:
        return False
    return await reader.read(5) == b"hello"


async def test_what_an_agent_hands_on_offline_is_less_than_it_has_and_falls_with_it(homes: dict[str, Path]) -> None:
    def hand_on() -> dict[str, Any]:
        first = _hand_on(
            homes, "agent", "worker", "--role", "reader", "--service", "docs", "--lifetime", "10m", "--delegate"
        )
        second = _hand_on(homes, "worker", "helper", "--role", "reader", "--service", "docs", "--lifetime", "1h")
        assert second["expires"] <= first["expires"], "it ends with that of its giver"
        return first

    made = await asyncio.to_thread(hand_on)
    assert (made["roles"], made["services"]) == (["reader"], ["docs"])

    async def hello(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        writer.write(b"hello")

    async with meshnode.Node(_config(homes["authority"])) as server:
        for service in ("docs", "ci-runner", "secrets"):
            server.serve(service, hello, allow=["role:reader"])
        server.serve("web", hello, allow=["role:web"])
        reached = {}
        for name in ("agent", "worker", "helper"):
            async with meshnode.Node(_config(homes[name], server)) as node:
                services = ("docs", "ci-runner", "secrets", "web")
                reached[name] = [service for service in services if await _reaches(node, server, service)]
        assert reached == {"agent": ["docs", "ci-runner"], "worker": ["docs"], "helper": ["docs"]}
        agent = (await asyncio.to_thread(_said, homes["agent"], "id"))["id"]
        statement = homes["authority"] / "agent.statement"
        await asyncio.to_thread(_said, homes["authority"], "revoke", agent, "--out", str(statement))
        runtime_of(server).stack.context.revoking.take(statement.read_bytes())
        runtime_of(server).driver.on_dirty()
        for name in ("agent", "worker", "helper"):
            async with meshnode.Node(_config(homes[name], server)) as node:
                with pytest.raises(meshnode.PolicyDenied, match="revoked"):
                    await node.open(server.id, "docs")


def test_an_agent_hands_on_no_role_service_or_step_that_it_has_not(homes: dict[str, Path], tmp_path: Path) -> None:
    worker = _said(homes["worker"], "id")["id"]
    issue = ("grant", "issue", worker, "--out", str(tmp_path / "no"))
    assert "wider" in _refused(homes["agent"], *issue, "--role", "admin", "--service", "docs")
    assert "wider" in _refused(homes["agent"], *issue, "--role", "reader", "--service", "secrets")
    assert "wider" in _refused(homes["agent"], *issue, "--role", "reader"), "all services are more than two"
    assert "deep" in _refused(homes["agent"], *issue, "--role", "reader", "--service", "docs", "--depth", "2")
    assert not (tmp_path / "no").exists()
    _hand_on(homes, "agent", "worker", "--role", "reader", "--service", "docs")
    helper = _said(homes["helper"], "id")["id"]
    given = ("grant", "issue", helper, "--role", "reader", "--service", "docs", "--out", str(tmp_path / "no"))
    assert "may give no grants" in _refused(homes["worker"], *given)
    ticket = _said(homes["agent"], "invite", "--role", "reader", "--service", "docs", "--lifetime", "10m")["ticket"]
    assert _said(tmp_path / "other", "join", ticket)["roles"] == ["reader"], "a delegate's ticket is a narrower one"
