"""An attacker in the DHT simulator: ids ground to be nearer to a key than any honest one, each of another network."""

from __future__ import annotations

import random

from dht_sim import Net, SimNode

from meshnode.discovery.dht.messages import (
    ContactInfo,
    Find,
    Get,
    Nodes,
    Ping,
    Pong,
    Reply,
    Request,
    Status,
    Store,
    Stored,
    Value,
    Watched,
)
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

TOKEN = bytes(8)


def ground_ids(key: bytes, count: int, bits: int, rng: random.Random) -> list[NodeId]:
    """Return random ids whose DHT keys share their first ``bits`` bits with ``key``."""
    wanted = int.from_bytes(key, "big") >> (160 - bits)
    found: list[NodeId] = []
    while len(found) < count:
        candidate = NodeId(rng.randbytes(32))
        if int.from_bytes(candidate.dht_key, "big") >> (160 - bits) == wanted:
            found.append(candidate)
    return found


def surround(net: Net, key: bytes, count: int, bits: int, old: EndpointRecord | None) -> list[SimNode]:
    """Have attackers join around ``key``: they name each other, take every record and give an ``old`` one or none."""
    foes = [net.add(own_id=foe) for foe in ground_ids(key, count, bits, net.rng)]
    infos = [ContactInfo(foe.id, foe.addr) for foe in foes]
    honest = [node for node in net.nodes if node.own_id is None]

    def lies(request: Request) -> Reply | None:
        chosen = tuple(net.rng.sample(infos, min(12, len(infos))))
        if isinstance(request, Ping):
            return Pong(request.tx, TOKEN)
        if isinstance(request, Find):
            return Nodes(request.tx, TOKEN, chosen)
        if isinstance(request, Get):
            return Value(request.tx, TOKEN, chosen, old.encoded if old is not None else b"")
        if isinstance(request, Store):
            return Stored(request.tx, Status.OK, TOKEN)
        return Watched(request.tx, Status.OK, TOKEN, b"")

    for i, foe in enumerate(foes):
        net.join(foe, [honest[i % 3]])
        if i % 8 == 7:
            net.run(0.2)
    net.run(20.0)  # they look themselves up, so that the honest nodes around the key meet them
    for foe in foes:
        foe.lies = lies
    net.run(5.0)
    return foes


def found_newest(net: Net, owner: SimNode, foes: list[SimNode], lookups: int) -> int:
    """Publish a new record of ``owner``, silence it, and count the lookups by others that end with that record."""
    net.publish(owner)
    net.run(5.0)
    owner.alive = False
    honest = [node for node in net.nodes if node.own_id is None and node is not owner]
    right = 0
    for asker in net.rng.sample(honest, lookups):
        _, _, end = net.resolve(asker, owner.id)
        right += end is not None and end.record is not None and end.record.seq == owner.seq
    owner.alive = True
    return right
