"""A leaf on real sockets: it is reached by its key, calls, moves, and says what it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshnode import Config, ConfigError
from meshnode.diagnosis.network import diagnose
from tests.conftest import MakeNode
from tests.given_time import HANG_S


async def _echo(reader: Any, writer: Any, peer: Any) -> None:
    writer.write(await reader.readexactly(5))
    await writer.drain()


async def test_a_leaf_serves_calls_and_moves_and_its_status_says_its_role(make_node: MakeNode) -> None:
    async with asyncio.timeout(HANG_S):
        seed = await make_node(seed_role=True)
        node = await make_node(seed=seed)
        leaf = await make_node(seed=seed, role="leaf")
        for served, caller in ((leaf, node), (node, leaf)):
            served.serve("echo", _echo, allow=["any"])
            reader, writer = await caller.open(served.id, "echo")
            if served is leaf:
                await leaf.rebind("127.0.0.2:0")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        assert leaf.status()["role"] == "leaf"
        assert seed.status()["role"] == "seed"
        assert node.status()["role"] == "node"
        assert "leaf" in leaf.record.capabilities
        (first, *_) = diagnose({"running": True, "status": leaf.status()})
        assert first.text.startswith("leaf ")


@pytest.mark.parametrize(
    "settings", [{"role": "tree"}, {"role": "leaf", "relay": "on"}, {"role": "leaf", "seed_role": True}]
)
def test_a_role_that_cannot_be_is_refused(settings: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ConfigError):
        Config(home=tmp_path, **settings)
