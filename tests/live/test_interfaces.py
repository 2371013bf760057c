"""Watching this host's addresses where netlink is not to be had, and starting and stopping (changes: tests/netns)."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from meshnode import Config
from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.base.metrics import Metrics
from meshnode.base.timers import reraise
from meshnode.runtime import interfaces
from meshnode.runtime.addresses import OwnAddresses
from meshnode.runtime.interfaces import InterfaceWatcher, local_networks
from meshnode.runtime.netlink import ADDRESS_HEAD, HEADER, NEW_ADDRESS
from tests.given_time import wait_for

ADDRESS_EVENT = HEADER.pack(HEADER.size + ADDRESS_HEAD.size, NEW_ADDRESS, 0, 0, 0) + ADDRESS_HEAD.pack(0, 0, 0, 0, 1)


async def test_without_netlink_addresses_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [("192.0.2.1", 24)]
    monkeypatch.setattr(interfaces.sys, "platform", "elsewhere")
    monkeypatch.setattr(interfaces, "POLL_S", 0.01)
    monkeypatch.setattr(interfaces, "local_networks", lambda loopback: list(here))
    seen = asyncio.Event()
    watcher = InterfaceWatcher(asyncio.get_running_loop(), seen.set)
    watcher.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(seen.wait(), 0.1)
    here[0] = ("192.0.2.2", 24)
    await wait_for(seen.wait(), 2)
    watcher.close()


async def test_where_netlink_is_refused_addresses_are_polled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> socket.socket:
        raise PermissionError

    here = [("192.0.2.1", 24)]
    monkeypatch.setattr(interfaces, "POLL_S", 0.01)
    monkeypatch.setattr(interfaces, "local_networks", lambda loopback: list(here))
    monkeypatch.setattr(interfaces.socket, "socket", refused)
    seen = asyncio.Event()
    watcher = InterfaceWatcher(asyncio.get_running_loop(), seen.set)
    watcher.start()
    here.append(("2001:db8::1", 64))
    await wait_for(seen.wait(), 2)
    watcher.close()


async def test_a_closed_watcher_is_silent_and_closes_twice() -> None:
    watcher = InterfaceWatcher(asyncio.get_running_loop(), lambda: pytest.fail("closed, and still it speaks"))
    watcher.start()
    watcher.close()
    watcher.close()
    await asyncio.sleep(0)


async def test_one_that_cannot_listen_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces.InterfaceWatcher, "_poll", lambda watcher: None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as refusing:
        refusing.setattr(interfaces.socket, "socket", _NoBind)
        watcher = InterfaceWatcher(asyncio.get_running_loop(), lambda: None)
        watcher.start()
    gc.collect()
    assert _NoBind.closed == 1
    watcher.close()
    assert len(os.listdir("/proc/self/fd")) == before


class _NoBind(socket.socket):
    """A socket that cannot be bound."""

    closed = 0

    def bind(self, place: object) -> None:
        raise PermissionError

    def close(self) -> None:
        type(self).closed += 1
        super().close()


async def test_a_move_behind_the_end_opens_nothing(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    addresses = OwnAddresses(
        loop,
        SystemClock(),
        Config(home=tmp_path, port_mapping=False),
        b"",
        lambda: Addr("127.0.0.1", 4242),
        lambda *told: None,
        Metrics(),
        reraise,
    )
    addresses.start()
    addresses.stop()
    before = len(os.listdir("/proc/self/fd"))
    addresses.moved()
    assert len(os.listdir("/proc/self/fd")) == before


def test_loopback_is_listed_only_when_asked_for() -> None:
    assert ("127.0.0.1", 8) in local_networks(loopback=True)
    assert not [host for host, _ in local_networks() if host.startswith("127.") or host == "::1"]


async def test_without_netlink_and_without_the_c_librarys_list_addresses_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*args: object) -> None:
        raise OSError("refused")

    def ask() -> tuple[set[str], set[str]]:
        watcher = InterfaceWatcher(asyncio.get_running_loop(), lambda: None)
        view, _ = watcher.look()
        watcher.close()
        return {host for host, _ in view.networks() if ":" not in host}, {way.source for way in view.ways_out}

    known = ask()
    monkeypatch.setattr(interfaces, "Netlink", refused)
    by_library = ask()
    monkeypatch.setattr("ifaddr.get_adapters", refused)
    assert known == by_library == ask()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_events_that_were_lost_are_a_change_and_those_behind_them_are_heard(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def watch() -> None:
        seen = asyncio.Event()
        watcher = InterfaceWatcher(asyncio.get_running_loop(), seen.set)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            kernel = free.getsockname()
        watcher._netlink = lost = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        lost.connect(kernel)
        asyncio.get_running_loop().add_reader(lost, watcher._readable)
        lost.send(b"x")  # is refused: an error of the socket, as netlink's when it had no room for an event
        await wait_for(seen.wait(), 10)
        seen.clear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(kernel)
            sender.sendto(ADDRESS_EVENT, lost.getsockname())
            await wait_for(seen.wait(), 10)
        watcher.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(watch())
