"""What the hybrid key exchange costs: CPU of both ends of a handshake, in pairs with X25519 alone, and round trips.

Both ends of a pair are in this process and take turns, so that what else the machine does costs both kinds the same;
the figure is the median of the differences. Round trips and datagrams are of a dial in virtual time, and exact.
"""

from __future__ import annotations

import gc
import statistics
import time

from bench.handshakes import datagrams
from meshnode.identity.keys import Identity
from meshnode.quic.engines import pick_engine
from meshnode.quic.seam import HandshakeDone

ONE, OTHER = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
ENGINES = ("qh3", "aioquic")


def handshake_ms(dials: str, listens: str, post_quantum: str) -> float:
    """Return the CPU of one handshake of two engines, in milliseconds."""
    began = time.process_time()
    dialler = pick_engine(dials, post_quantum).dial(ONE, OTHER.id, lambda _: bytes(96), 30.0, 0.0)
    listener = pick_engine(listens, post_quantum).accept(OTHER, dialler.odcid, 30.0, 0.0)
    waiting, groups = {dialler, listener}, set()
    for step in range(10):
        for source, target in ((dialler, listener), (listener, dialler)):
            if sent := source.transmit(step * 0.001):
                target.receive(sent, step * 0.001)
            for event in source.events():
                if isinstance(event, HandshakeDone):
                    waiting.discard(source)
                    groups.add(event.group)
        if not waiting:
            break
    spent = time.process_time() - began
    assert not waiting
    assert groups == {"X25519" if post_quantum == "off" else "X25519MLKEM768"}
    for engine in (dialler, listener):
        engine.release()
    return spent * 1000


def run(pairs: int = 400) -> dict[str, dict[str, float]]:
    """Return the figures by engines: those of the dialler and the listener."""
    found = {}
    for dials in ENGINES:
        for listens in ENGINES:
            gc.disable()
            taken = [(handshake_ms(dials, listens, "off"), handshake_ms(dials, listens, "on")) for _ in range(pairs)]
            gc.enable()
            found[f"{dials}-{listens}"] = {
                "off_ms": round(statistics.median(off for off, _ in taken), 3),
                "on_ms": round(statistics.median(on for _, on in taken), 3),
                "more_ms": round(statistics.median(on - off for off, on in taken), 3),
            }
    for name in ENGINES:
        off, on = (datagrams(name, post_quantum=setting) for setting in ("off", "on"))
        found[f"{name}-{name}"] |= {
            "round_trips_more": on["round_trips"] - off["round_trips"],
            "datagrams_off": off["datagrams"],
            "datagrams_on": on["datagrams"],
        }
    return found
