"""Places in the DHT: what one IPv6 /64 can take of them by storing and watching all that it may."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks import Row, Skipped
from attacks.foe import Foe
from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_STORED, DHT_MAX_WATCHES, DHT_MAX_WATCHES_PER_SENDER
from meshnode.demo.netns import Host, Network, missing
from meshnode.discovery.dht.messages import (
    Get,
    Reply,
    Status,
    Store,
    Stored,
    Value,
    Watch,
    Watched,
    decode_message,
    encode_message,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record

IP_FREEBIND = 15  # linux/in.h: any address of a routed network, of IPv6 too
NODE4, NODE6 = "10.86.0.1", "2001:db8:86::1"
HONEST, ATTACKER = 500, "2001:db8:1:2"  # how many records, each from a network of its own; and the /64
RECORDS = DHT_MAX_STORED + 3_000
ROWS = {
    "store": Row(
        14, "medium", f"one /64: {RECORDS} records of throw-away ids", "discovery/dht/store.py",
        f"records kept of {HONEST} honest ones", 192, HONEST, more=True,
    ),
    "watch": Row(
        14, "medium", "one /64: 40 ids that watch all they may", "discovery/dht/watchers.py",
        "watches accepted of 50 newcomers elsewhere", 0, 50, more=True,
    ),
}  # fmt: skip


class Asker:
    """A member at an address, that asks one node."""

    def __init__(self, host: Host, source: str, node: tuple[NodeId, str], foe: Foe | None = None) -> None:
        self._node, where = node
        self._foe = foe or Foe()
        self._token = b""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET

        def bound() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            made.bind((source, 0))
            made.connect((where, 4242))
            made.settimeout(0.5)
            return made

        self._socket = host.inside(bound)

    def close(self) -> None:
        """End."""
        self._socket.close()

    def _ask(self, message: Get | Store | Watch) -> Reply | None:
        body = encode_message(message, pad_to=DHT_MAX_BODY)
        for _ in range(6):
            self._socket.send(self._foe.sealer.seal(self._node, body))
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                try:
                    opened = self._foe.sealer.unseal(self._socket.recv(2_000))
                except TimeoutError:
                    break
                reply = decode_message(opened[1]) if opened is not None and 0x10 <= opened[1][0] < 0x20 else None
                if isinstance(reply, Reply) and reply.tx == message.tx:
                    return reply
        return None

    def record(self, key: bytes) -> bytes:
        """Return the record that the node holds of a key, and take its token."""
        reply = self._ask(Get(os.urandom(8), key))
        if not isinstance(reply, Value):
            return b""
        self._token = reply.token
        return reply.record

    def store(self, record: EndpointRecord) -> bool:
        """Store a record; True when it was taken."""
        if not self._token:
            self.record(bytes(20))
        reply = self._ask(Store(os.urandom(8), self._token, record.encoded))
        return isinstance(reply, Stored) and reply.status is Status.OK

    def watch(self, key: bytes) -> bool:
        """Watch a key; True when it was accepted."""
        if not self._token:
            self.record(bytes(20))
        reply = self._ask(Watch(os.urandom(8), self._token, key, 0, 90))
        return isinstance(reply, Watched) and reply.status is Status.OK


def throw_away() -> EndpointRecord:
    """Return a record of an id that nothing else is known of."""
    now = int(time.time() * 1000)
    place = (Endpoint(Addr("198.51.100.7", 4242)),)
    return sign_record(Identity.generate(), seq=now, issued_ms=now, ttl=7200, endpoints=place)


def stored(node: NodeId, honest: Host, attacker: Host) -> int:
    """Return how many honest records are there after the attack."""
    kept = [throw_away() for _ in range(HONEST)]
    for number, record in enumerate(kept):
        asker = Asker(honest, f"100.{64 + number // 200}.{number % 200}.1", (node, NODE4))
        asker.store(record)
        asker.close()
    foe = Foe()
    for number in range(RECORDS // 100):
        asker = Asker(attacker, f"{ATTACKER}::{number + 1:x}", (node, NODE6), foe)
        for _ in range(100):
            asker.store(throw_away())
        asker.close()
    asker = Asker(honest, "100.64.0.1", (node, NODE4))
    found = sum(asker.record(record.id.dht_key) == record.encoded for record in kept)
    asker.close()
    return found


def watched(node: NodeId, honest: Host, attacker: Host) -> int:
    """Return how many newcomers elsewhere may watch after the attack."""
    for number in range(DHT_MAX_WATCHES // DHT_MAX_WATCHES_PER_SENDER + 8):
        asker = Asker(attacker, f"{ATTACKER}::1:{number + 1:x}", (node, NODE6))
        for key in range(DHT_MAX_WATCHES_PER_SENDER):
            asker.watch((number * 1_000 + key).to_bytes(20, "big"))
        asker.close()
    accepted = 0
    for number in range(50):
        asker = Asker(honest, f"100.{70}.{number}.1", (node, NODE4))
        accepted += asker.watch((10**9 + number).to_bytes(20, "big"))
        asker.close()
    return accepted


@contextmanager
def hosts() -> Iterator[tuple[NodeId, Host, Host]]:
    """Yield a node's id, and hosts that own an IPv4 /10 and an IPv6 /64, all of whose addresses they may use."""
    with Network("meshquota") as net, tempfile.TemporaryDirectory() as folder:
        switch = net.switch()
        node = net.host("node", switch, f"{NODE4}/24")
        honest = net.host("honest", switch, "10.86.0.2/24")
        attacker = net.host("attacker", switch, "10.86.0.3/24")
        node.ip(f"addr add {NODE6}/64 dev eth0", "route add 100.64.0.0/10 via 10.86.0.2")
        attacker.ip("addr add 2001:db8:86::3/64 dev eth0", f"route add local {ATTACKER}::/64 dev lo")
        node.ip(f"route add {ATTACKER}::/64 via 2001:db8:86::3")
        honest.ip("route add local 100.64.0.0/10 dev lo")
        command = node.command(sys.executable, "-m", "meshnode", "up", "--json", "--no-mdns", "--listen", "[::]:4242")
        command += ["--home", str(Path(folder) / "home")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                assert process.stdout is not None
                yield NodeId.parse(json.loads(process.stdout.readline())["id"]), honest, attacker
            finally:
                process.terminate()


def run(short: bool) -> dict[str, float]:
    """Attack an ordinary node."""
    reason = missing()
    if reason is not None:
        raise Skipped(reason)
    with hosts() as (node, honest, attacker):
        figures: dict[str, float] = {"store": stored(node, honest, attacker)}
        if not short:
            figures["watch"] = watched(node, honest, attacker)
    return figures
