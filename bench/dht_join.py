"""What a node's join costs the DHT: datagrams and bytes to and from it in its first 30 seconds, in virtual time.

The node publishes its record as it joins. QUIC, gossip and probes of paths are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import Net, SimNode, build

from meshnode.discovery.dht import SendSealed
from meshnode.identity.sealing import SEAL_OVERHEAD


class Counted(Net):
    """A network that counts what goes to and from one node."""

    node: SimNode | None = None
    count = size = 0

    def _send(self, node: SimNode, effect: SendSealed) -> None:
        if self.node is not None and (node is self.node or effect.peer == self.node.id):
            self.count += 1
            self.size += len(effect.body) + SEAL_OVERHEAD
        super()._send(node, effect)


def measure(nodes: int, seed: int = 1) -> dict[str, Any]:
    """Let one more node join a mesh of ``nodes`` whose records are published."""
    net = build(nodes, seed, kind=Counted)
    assert isinstance(net, Counted)
    for node in net.nodes:
        net.publish(node)
    net.run(20.0)
    net.node = late = net.add()
    net.join(late, [net.nodes[0]])
    net.publish(late)
    net.run(30.0)
    known_by = sum(late.id in dict(node.dht.contacts()) for node in net.nodes)
    return {
        "name": "dht_join",
        "nodes": nodes,
        "datagrams": net.count,
        "bytes": net.size,
        "contacts": len(late.dht.contacts()),
        "contact_of": known_by,
    }


if __name__ == "__main__":
    for count in [int(arg) for arg in sys.argv[1:]] or [10, 40, 1_000]:
        print(json.dumps(measure(count)), flush=True)
