"""Forwards and proxies that listen at host names: no name server that is dead delays a start."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack

import pytest

from meshnode.services import forward
from meshnode.services.proxy import book as proxy_book
from meshnode.services.proxy import listener as proxy_listener
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import within


async def test_a_name_that_no_server_answers_for_delays_no_start_and_what_listens_there_begins_when_one_does(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = asyncio.Event()

    async def look_up(host: str) -> list[str]:
        if host == "dead.example":
            await answered.wait()
        return ["127.0.0.1"]

    for module in (forward, proxy_listener):
        monkeypatch.setattr(module, "look_up", look_up)
    for module in (forward, proxy_book):
        monkeypatch.setattr(module, "NAMES_S", 0.05)
    monkeypatch.setattr(forward, "LISTEN_RETRY_S", 0.02)
    monkeypatch.setattr(proxy_book, "LISTEN_RETRY_S", 0.02)
    node = await make_node()
    ports = _free_ports(5)
    names = [f"dead.example:{port}" for port in ports[:3]]
    forwards = [{"listen": listen, "to": "one/web", "sticky": False} for listen in (*names, f"127.0.0.1:{ports[3]}")]
    saved = {"exposes": [], "forwards": forwards}
    (node.config.home_path / "services.json").write_text(json.dumps(saved))
    proxy = {"listen": f"dead.example:{ports[4]}", "public": False, "dns": None}
    (node.config.home_path / "proxies.json").write_text(json.dumps([proxy]))
    book, proxies = ServiceBook(node), ProxyBook(node)
    async with within(10):
        await asyncio.gather(book.restore(), proxies.restore())
    assert [bool(book.forwards[listen].error) for listen in names] == [True] * 3
    assert proxies.describe()[0]["error"]
    _, writer = await asyncio.open_connection("127.0.0.1", ports[3])
    writer.close()
    await book.expose("other", "80", ())
    assert all(listen in (node.config.home_path / "services.json").read_text() for listen in names)
    answered.set()
    async with within(15):
        while any(each.error for each in (*book.forwards.values(), *proxies.proxies.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for port in ports:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    await proxies.close()
    await book.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]
