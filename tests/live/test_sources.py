"""A fifth source in real nodes: the one of docs/how-to/add-a-discovery-source.md."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import pytest

from meshnode import ConfigError, NodeId, NotFound
from meshnode.discovery.source import RecordSource
from meshnode.runtime import sources
from meshnode.runtime.seeds import SeedSource
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import wait_for, within

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-discovery-source.md"


def example() -> Any:
    """The class that the page shows."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(compile(block[1], str(PAGE), "exec"), names)
    return names["FolderSource"]


async def test_the_pages_source_is_one_class_and_one_line(
    monkeypatch: pytest.MonkeyPatch, make_node: MakeNode, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    source = example()
    monkeypatch.setattr(sources, "SOURCES", [*sources.SOURCES, lambda node: source(folder, node.spawn)])
    here, there = await make_node(), await make_node()
    found = await here.resolve(there.id)
    assert (found.record.id, found.source) == (there.id, "folder")
    assert (await here.ping(there.id)).rtt is not None
    shown = here.status()["sources"]
    assert list(shown) == ["dht", "folder"]
    assert shown["folder"] == {"folder": str(folder), "error": ""}
    nowhere = NodeId(bytes(32))
    (folder / str(nowhere)).write_bytes(there.record.encoded)
    with pytest.raises(NotFound):
        await here.resolve(nowhere)


async def test_a_source_that_fails_keeps_no_other_from_its_work(
    monkeypatch: pytest.MonkeyPatch, make_node: MakeNode
) -> None:
    class Broken(RecordSource):
        name = "broken"

        def start(self, *told: object) -> None:
            raise RuntimeError("a fault")

        def publish(self, *told: object) -> None:
            self.start()

        def resolve(self, *told: object) -> None:
            self.start()

        def moved(self, *told: object) -> None:
            self.start()

    def cannot_be_made(node: object) -> None:
        raise RuntimeError("a fault")

    there = await make_node(gossip=False, dht=False)
    monkeypatch.setattr(sources, "SOURCES", [cannot_be_made, lambda node: Broken(), *sources.SOURCES])
    here = await make_node(seed=there, gossip=False, dht=False)
    assert (await wait_for(here.connect(there.id), 10)).peer == there.id
    await here.rebind()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(here.resolve(NodeId(bytes(32))), 0.1)  # it is looked for
    assert runtime_of(here).metrics.counters["faults"] >= 4


async def test_a_source_is_closed_with_its_node_even_if_that_fails(
    monkeypatch: pytest.MonkeyPatch, make_node: MakeNode, tmp_path: Path
) -> None:
    closed = []

    class Broken(RecordSource):
        name = "broken"

        async def close(self) -> None:
            closed.append(self.name)
            raise OSError("gone")

    monkeypatch.setattr(sources, "SOURCES", [lambda node: Broken()])
    node = await make_node(home=tmp_path / "one")
    await asyncio.sleep(0)
    await node.close()
    assert closed == ["broken"]
    again = await make_node(home=tmp_path / "one")
    assert again.id == node.id


async def test_the_status_shows_each_source(make_node: MakeNode) -> None:
    seed = await make_node()
    node = await make_node(seed=seed)
    await node.ping(seed.id)
    shown = node.status()["sources"]
    assert list(shown) == ["dht", "seeds"]
    assert shown["seeds"] == {"configured": 1, "errors": {}}
    assert node.status()["mdns"] == {"on": False}
    without = await make_node(dht=False)
    assert list(without.status()["sources"]) == []


async def test_a_seed_without_an_address_is_shown_with_its_error(make_node: MakeNode) -> None:
    other = await make_node()
    node = await make_node(seeds=(f"{other.id}@no-such-host.invalid:4242",))
    async with within(10):
        while not node.status()["counters"].get("seed_name_errors"):  # noqa: ASYNC110 - a counter announces no change
            await asyncio.sleep(0.01)
    source = next(s for s in runtime_of(node).stack.sources if isinstance(s, SeedSource))
    assert list(source.status()["errors"]) == ["no-such-host.invalid"]  # type: ignore[call-overload]


async def test_a_node_is_found_by_a_configured_record_without_any_seed(make_node: MakeNode) -> None:
    there = await make_node()
    text = base64.b64encode(there.record.encoded).decode()
    here = await make_node(records=(text,), dht=False, gossip=False)
    found = await here.resolve(there.id)
    assert (found.record.id, found.source) == (there.id, "static")
    assert (await here.ping(there.id)).rtt is not None
    assert here.status()["sources"]["static"] == {"configured": 1}


@pytest.mark.parametrize("text", ["no base64!", "", base64.b64encode(bytes(1_001)).decode()])
async def test_a_record_that_is_damaged_is_refused_at_the_start(make_node: MakeNode, text: str) -> None:
    with pytest.raises(ConfigError, match="a record in `records`"):
        await make_node(records=(text,))


async def test_a_configured_record_that_is_not_signed_by_its_node_counts_for_nothing(make_node: MakeNode) -> None:
    there = await make_node()
    forged = bytearray(there.record.encoded)
    forged[-1] ^= 1
    here = await make_node(records=(base64.b64encode(forged).decode(),), dht=False, gossip=False)
    with pytest.raises(NotFound):
        await here.resolve(there.id)
