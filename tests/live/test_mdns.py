"""What arrives by multicast DNS, and what becomes of it; nothing here sends a packet (tests/netns crosses a LAN)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterable

import pytest
from zeroconf import (  # type: ignore[attr-defined]
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSText,
    InterfaceChoice,
    RecordUpdate,
    Zeroconf,
    const,
)

from meshnode import Identity, Node, NodeId
from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.base.limits import MAX_LAN_TEXT, MAX_RECORD
from meshnode.base.metrics import Metrics
from meshnode.discovery.lan import Announcement, encode_text, seal_announcement
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.runtime import mdns
from meshnode.runtime.mdns import SERVICE_TYPE, MdnsSource
from meshnode.sdk.node import runtime_of
from meshnode.stack.resolution import Intake
from tests.conftest import MakeNode
from tests.given_time import GivenTime, within
from tests.live.test_hostile import bad_records, counters, member


def mdns_of(node: Node) -> MdnsSource | None:
    """The node's source, once it has started."""
    return next((s for s in runtime_of(node).stack.sources if isinstance(s, MdnsSource)), None)


def announced(record: bytes, sealer: Sealer | None = None) -> bytes:
    """The TXT rdata with which a member announces a record now."""
    said = Announcement(record, time.time(), asks=True)
    return encode_text(seal_announcement(sealer or member(), said))


class Heard:
    """A source and, as its sink, the records that it handed in."""

    def __init__(self, mesh: str = "open") -> None:
        self.records: list[bytes] = []
        self.metrics = Metrics()
        identity = Identity.generate()
        sealer = Sealer(identity, MeshKey.from_text(mesh), SystemClock(), os.urandom, born=0.0)
        self.source = MdnsSource(identity.id, sealer, lambda: Addr("127.0.0.1", 1), self.metrics)
        self.source._sink = self

    def record(self, encoded: bytes, via: str = "") -> None:
        """Sink."""
        self.records.append(encoded)

    def seed(self, peer: NodeId, addrs: Iterable[Addr]) -> None:
        """Sink."""
        raise AssertionError("mDNS knows no seeds")

    def is_wanted(self, peer: NodeId) -> bool:
        """Sink."""
        return False

    def hear(self, text: bytes, name: str = "x." + SERVICE_TYPE) -> None:
        """As if zeroconf had heard a TXT record."""
        record = DNSText(name, const._TYPE_TXT, const._CLASS_IN, 120, text)
        self.source._ear.async_update_records(None, 0.0, [RecordUpdate(record, None)])  # type: ignore[arg-type]


async def test_a_members_announcement_is_handed_in_once() -> None:
    heard = Heard()
    text = announced(b"a record")
    heard.hear(text)
    heard.hear(text)
    assert heard.records == [b"a record"]


@pytest.mark.skipif(not socket.has_ipv6, reason="this host has IPv4 alone")
@pytest.mark.parametrize("missing", [socket.AF_INET, socket.AF_INET6])
async def test_where_a_family_of_addresses_is_not_to_be_had_the_other_one_is_used(
    missing: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(socket.socket):
        def __init__(self, family: int = -1, *more: int) -> None:
            if family == missing:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *more)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", Refused)
        opened = mdns._open(InterfaceChoice.All)
    await opened.zeroconf.async_wait_for_start()
    families = {sender.transport.get_extra_info("socket").family for sender in opened.zeroconf.engine.senders}
    await opened.async_close()
    assert families == {socket.AF_INET, socket.AF_INET6} - {missing}


async def test_what_is_not_of_this_mesh_is_counted_and_dropped() -> None:
    heard = Heard()
    foreign = announced(b"a record", member(mesh="another"))
    texts = [foreign, b"", b"\x00", b"\x05abc", b"\xff" * 300, b"\x0bpath=/index", bytes(200), os.urandom(MAX_LAN_TEXT)]
    for text in texts:
        heard.hear(text)
    assert not heard.records
    assert heard.metrics.counters == {"mdns_foreign": len(texts)}


async def test_what_is_too_long_is_counted_and_dropped() -> None:
    heard = Heard()
    heard.hear(encode_text(member().encrypt_hint(bytes(MAX_LAN_TEXT))))
    assert not heard.records
    assert heard.metrics.counters == {"mdns_oversized": 1}


async def test_other_services_and_other_kinds_of_record_are_not_looked_at() -> None:
    heard = Heard()
    heard.hear(announced(b"a record"), name="printer._ipp._tcp.local.")
    address = DNSAddress("x." + SERVICE_TYPE, const._TYPE_A, const._CLASS_IN, 120, bytes(4))
    heard.source._ear.async_update_records(None, 0.0, [RecordUpdate(address, None)])  # type: ignore[arg-type]
    assert not heard.records
    assert heard.metrics.counters == {}


async def test_a_flood_of_announcements_is_remembered_within_a_bound() -> None:
    heard, sender = Heard(), member()
    for number in range(2000):
        heard.hear(announced(number.to_bytes(4, "big"), sender))
    assert len(heard.records) == 2000
    assert len(heard.source.lan._heard) <= 512


async def test_records_of_any_host_of_the_link_stay_in_no_cache() -> None:
    heard = Heard()
    opened = mdns._open(["127.0.0.1"])
    zeroconf = opened.zeroconf
    zeroconf.add_listener(heard.source._ear, None)
    await zeroconf.async_wait_for_start()
    for number in range(100):
        said = DNSOutgoing(mdns.RESPONSE)
        name = f"{number}.{SERVICE_TYPE}"
        text = announced(b"a record") if number == 99 else bytes(8_000)
        said.add_answer_at_time(DNSText(name, const._TYPE_TXT, const._CLASS_IN, 2_000_000_000, text), 0)
        zeroconf.record_manager.async_updates_from_response(DNSIncoming(said.packets()[0]))
    assert heard.records == [b"a record"]
    assert not zeroconf.cache.cache
    await opened.async_close()


async def test_bad_records_on_the_lan_are_dropped_by_name_and_the_node_goes_on(make_node: MakeNode) -> None:
    node = await make_node()
    liar, sealer = Identity.generate(), member()
    runtime = runtime_of(node)
    source = MdnsSource(node.id, runtime.sealer, lambda: runtime.sockets.local, runtime.metrics)
    source._sink = Intake(runtime.stack.resolution, source)
    bad = {reason: encoded for reason, encoded in bad_records(liar).items() if len(encoded) <= MAX_RECORD}
    for encoded in bad.values():
        source.hear(announced(encoded, sealer))
    found = counters(node)
    assert {name: n for name, n in found.items() if name.startswith("record_")} == {
        f"record_{reason}": 1 for reason in bad
    }
    assert runtime_of(node).stack.resolution.resolver.get(liar.id, time.time()) is None
    friend = await make_node(seed=node)
    assert (await friend.ping(node.id)).rtt is not None


@pytest.mark.parametrize(
    "error", [OSError("no multicast here"), AssertionError(), TimeoutError(), RuntimeError("a fault")]
)
async def test_a_host_without_multicast_counts_it_and_runs(
    monkeypatch: pytest.MonkeyPatch, make_node: MakeNode, error: Exception
) -> None:
    def refuse(interfaces: object) -> Zeroconf:
        raise error

    monkeypatch.setattr(mdns, "_open", refuse)
    node = await make_node(mdns=True)
    async with within(3):
        while not counters(node).get("mdns_errors"):  # noqa: ASYNC110 - a counter announces no change
            await asyncio.sleep(0.005)
    friend = await make_node(seed=node)
    assert (await friend.ping(node.id)).rtt is not None
    started = GivenTime()
    await node.close()
    assert started.seconds < 1.5


async def test_a_node_that_is_bound_to_loopback_says_nothing_on_other_networks(make_node: MakeNode) -> None:
    node = await make_node(mdns=True)
    async with within(5):
        while (source := mdns_of(node)) is None or source._zeroconf is None:  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.02)
    await source._zeroconf.zeroconf.async_wait_for_start()
    senders = source._zeroconf.zeroconf.engine.senders
    assert {sender.transport.get_extra_info("sockname")[0] for sender in senders} == {"127.0.0.1"}


@pytest.mark.parametrize("error", [OSError("no such device"), RuntimeError("No interfaces to listen on")])
async def test_interfaces_that_could_not_be_joined_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Opened:
        """zeroconf, whose first update comes before the interface is ready."""

        tries = 0

        async def async_update_interfaces(self, interfaces: object) -> None:
            self.tries += 1
            if self.tries == 1:
                raise error
            joined.set()

    monkeypatch.setattr(mdns, "RETRY_S", 0.01)
    joined, heard = asyncio.Event(), Heard()
    heard.source._zeroconf = Opened()  # type: ignore[assignment]
    heard.source.moved(time.monotonic())
    task = asyncio.create_task(heard.source._run())
    try:
        async with within(5):
            await joined.wait()
    finally:
        task.cancel()
