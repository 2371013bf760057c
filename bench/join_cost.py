"""What the join of one whole node costs: datagrams and bytes to and from it in its first 30 seconds, in virtual time.

The mesh has settled before. The engine is qh3's up to 40 nodes, modelled QUIC above. ``python -m bench.join_cost
[NODES...]`` prints what went by kind: requests of the DHT by what asked them, probes of paths, QUIC by handshake and
established connection.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from statistics import mean
from typing import Any

from meshnode.base.wire import WireError
from meshnode.discovery.dht import rpc
from meshnode.discovery.dht.messages import decode_message
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import Sealer
from meshnode.quic.engines import pick_engine
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.sender import Sender

WINDOW_S, SETTLE_S, REAL = 30.0, 120.0, 40
SHORT_HEADER = 0x80  # the bit that one has not (RFC 9000 section 17)


class _Tally:
    """Counts what goes to and from one address, by kind."""

    def __init__(self, world: World, late: SimNode) -> None:
        self.count: Counter[str] = Counter()
        self.size: Counter[str] = Counter()
        self._late = late
        self._kinds: dict[bytes, str] = {}  # of requests of the DHT, by transaction
        self._sealed = ""
        self._undo: list[Callable[[], None]] = []
        self._patch(Sender, "send_sealed", self._send_sealed)
        self._patch(rpc.Rpcs, "call", self._call)
        deliver = world.deliver

        def note(source: Any, to: Any, datagram: bytes, nat: Any = None) -> None:
            if self._late.addr in (source, to):
                kind = self._kind(datagram)
                self.count[kind] += 1
                self.size[kind] += len(datagram)
            deliver(source, to, datagram, nat)

        world.deliver = note  # type: ignore[method-assign]

    def _patch(self, owner: Any, name: str, with_: Callable[..., Any]) -> None:
        before = getattr(owner, name)
        setattr(owner, name, lambda own, *args, **options: with_(before, own, *args, **options))
        self._undo.append(lambda: setattr(owner, name, before))

    def end(self) -> None:
        for undo in self._undo:
            undo()

    def _send_sealed(self, send: Any, own: Any, peer: NodeId, path: Any, body: bytes, *rest: Any) -> Any:
        self._sealed = "probe of a path" if body[0] < 0x10 else ""
        if not self._sealed:
            try:
                message = decode_message(body)
                tx = message.tx
                self._sealed = self._kinds.get(tx, "?")
            except WireError:
                self._sealed = "sealed"
        try:
            return send(own, peer, path, body, *rest)
        finally:
            self._sealed = ""

    def _call(self, call: Any, own: Any, peer: NodeId, addr: Any, make: Any, *args: Any, **options: Any) -> Any:
        frame = sys._getframe(2)
        asker = frame.f_code.co_qualname
        while asker.startswith(("Lookups.", "Announcer._store", "Announcer._offer", "Contacts._probe")):
            frame = frame.f_back  # type: ignore[assignment]
            asker = frame.f_code.co_qualname
        who = "by it" if own is self._late.mesh.resolution.dht.dht._shared.rpcs else "of it"

        def named(tx: bytes) -> Any:
            request = make(tx)
            self._kinds[tx] = f"{type(request).__name__} {who}: {asker}"
            return request

        return call(own, peer, addr, named, *args, **options)

    def _kind(self, datagram: bytes) -> str:
        if not datagram[0] & 0x40:
            return self._sealed or "sealed"
        return "QUIC handshake" if datagram[0] & SHORT_HEADER else "QUIC established"


def measure(nodes: int, seed: int = 1) -> dict[str, Any]:
    """Let one more node join a mesh of ``nodes`` with one seed, that has settled."""
    world = World(seed, Weather(delay=0.01))
    is_real = nodes <= REAL
    engines: Any = pick_engine("auto") if is_real else ModelEngines(world.entropy)
    sealer = Sealer if is_real else PlainSealer

    def add(number: int) -> SimNode:
        host = f"10.{number // 250}.{number % 250}.1"
        return SimNode(world, host, engines, seed_role=number == 1, gossip=True, sealer=sealer)

    first = add(1)
    for number in range(2, nodes + 1):
        add(number).join(first)
        world.run(0.1)
    world.run(SETTLE_S)
    late = add(nodes + 1)
    tally = _Tally(world, late)
    late.join(first)
    world.run(WINDOW_S)
    tally.end()
    assert late.mesh.gossip is not None
    dials = late.mesh.metrics.counters
    return {
        "nodes": nodes,
        "datagrams": tally.count.total(),
        "bytes": tally.size.total(),
        "dials": dials.get("dials", 0),
        "accepts": dials.get("accepts", 0),
        "neighbours": len(late.mesh.gossip.core.hyparview.active),
        "contacts": len(late.mesh.resolution.contacts()),
        "members": len(late.mesh.gossip.members()),
        "kinds": {kind: (n, tally.size[kind]) for kind, n in tally.count.most_common()},
    }


def mean_of(nodes: int, seeds: int = 8) -> dict[str, Any]:
    """Return the means of several worlds."""
    found = [measure(nodes, seed) for seed in range(1, seeds + 1)]
    kinds = Counter[str]()
    sizes = Counter[str]()
    for each in found:
        for kind, (count, size) in each["kinds"].items():
            kinds[kind] += count
            sizes[kind] += size
    told = {key: round(mean(each[key] for each in found), 1) for key in found[0] if key != "kinds"}
    told["kinds"] = {k: (round(n / seeds, 1), round(sizes[k] / seeds)) for k, n in kinds.most_common()}
    return told


if __name__ == "__main__":
    for number in [int(arg) for arg in sys.argv[1:]] or [10, 40]:
        print(json.dumps(mean_of(number), indent=1), flush=True)
