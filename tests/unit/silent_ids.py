"""An attacker in the DHT simulator: free ids in a few networks that answer and are silent by turns."""

from __future__ import annotations

from collections.abc import Callable

from dht_sim import Net, SimNode

from meshnode.base.address import Addr
from meshnode.discovery.dht import SendSealed
from meshnode.discovery.dht.messages import (
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
    encode_message,
)
from meshnode.identity.node_id import NodeId

TOKEN = bytes(8)
EVERY_S = 0.5  # each asks the victim, which asks back


def answer(request: Request) -> Reply:
    """Return an answer that says nothing."""
    if isinstance(request, Ping):
        return Pong(request.tx, TOKEN)
    if isinstance(request, Find):
        return Nodes(request.tx, TOKEN, ())
    if isinstance(request, Get):
        return Value(request.tx, TOKEN, (), b"")
    if isinstance(request, Store):
        return Stored(request.tx, Status.OK, TOKEN)
    return Watched(request.tx, Status.OK, TOKEN, b"")


def by_turns() -> Callable[[Request], Reply | None]:
    """Return what answers every second request, and the others never, however often they are sent."""
    silent: dict[bytes, bool] = {}

    def lies(request: Request) -> Reply | None:
        silent.setdefault(request.tx, len(silent) % 2 == 1)
        return None if silent[request.tx] else answer(request)

    return lies


def alternate(net: Net, victim: SimNode, count: int, networks: int) -> None:
    """Let so many ids in so many networks ask ``victim``, answer it and be silent by turns."""

    def ask(foe: SimNode) -> None:
        body = encode_message(Find(net.rng.randbytes(8), victim.id.dht_key), pad_to=160)  # a ping makes no contact
        net._send(foe, SendSealed(victim.id, victim.addr, body))
        net.at(net.now + EVERY_S, lambda: ask(foe))

    for number in range(count):
        addr = Addr(f"203.0.{number % networks}.{number // networks + 1}", 4242)
        foe = net.add(own_id=NodeId(net.rng.randbytes(32)), addr=addr)
        foe.lies = by_turns()
        ask(foe)
