"""A key that a start makes: beside the event loop, and only where its price buys something."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from meshnode import Identity, Node
from meshnode.errors import AlreadyRunning, NodeClosed
from meshnode.identity import keyfile
from tests.live.test_life import config


class Maker:
    """Makes a key when it is told to; waits for that in the thread that wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self.asked = asyncio.Event()
        self.may = threading.Event()
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(keyfile, "make_identity", self)

    def __call__(self) -> Identity:
        self._loop.call_soon_threadsafe(self.asked.set)
        assert self.may.wait(10.0), "the loop is held"
        self.made += 1
        return Identity.generate()


async def test_a_new_key_holds_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(monkeypatch)
    node = Node(config(tmp_path / "home"))
    starting = asyncio.create_task(node.start())
    await maker.asked.wait()
    maker.may.set()
    await starting
    assert str(node.id) == str(keyfile.load(tmp_path / "home" / "key").id)
    await node.close()
    async with Node(config(tmp_path / "home")) as again:
        assert again.id == node.id
    assert maker.made == 1


async def test_a_node_that_is_closed_while_its_key_is_made_never_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(monkeypatch)
    node = Node(config(tmp_path / "home"))
    starting = asyncio.create_task(node.start())
    await maker.asked.wait()
    await node.close()
    maker.may.set()
    with pytest.raises(NodeClosed):
        await starting
    assert not (tmp_path / "home" / "key").exists()


async def test_a_start_that_is_cancelled_while_its_key_is_made_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(monkeypatch)
    starting = asyncio.create_task(Node(config(tmp_path / "home")).start())
    await maker.asked.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    maker.may.set()
    async with Node(config(tmp_path / "home")) as other:
        assert other.id == keyfile.load(tmp_path / "home" / "key").id


async def test_two_starts_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(monkeypatch)
    node = Node(config(tmp_path / "home"))
    starts = [asyncio.create_task(node.start()) for _ in range(2)]
    await maker.asked.wait()
    maker.may.set()
    ends = await asyncio.gather(*starts, return_exceptions=True)
    assert sorted(map(type, ends), key=str) == sorted([type(None), AlreadyRunning], key=str)
    await node.close()


async def test_a_node_outside_the_dht_pays_no_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(monkeypatch)
    async with Node(config(tmp_path / "home", dht=False)):
        assert maker.made == 0
