"""Faults of qh3's core that ``docs/explanation/engine-request.md`` describes, made again in virtual time.

``python -m bench.engine_faults ended [SEED ...]`` ends 300 streams at once under loss; ``full`` has both ends fill
their congestion windows, as the core does it alone and with ACKs of our own (``quic/engines/late_acks.py``).
"""

from __future__ import annotations

import random
import sys

from meshnode.quic.engines.qh3_connection import OwnPackets
from tests.unit.test_stream import Pair

STREAMS = 300
SIZE = 20_000


def _run(pair: Pair, seconds: float, loss: float, rng: random.Random) -> None:
    """Carry what both ends send, and lose some of it."""
    end = pair.now + seconds
    while pair.now < end:
        for one, other in ((pair.dialler, pair.listener), (pair.listener, pair.dialler)):
            one.on_timer(pair.now)
            for datagram in one.transmit(pair.now):
                if rng.random() >= loss:
                    other.receive([datagram], pair.now)
        pair.now += 0.005
        for stream in (*pair.there.streams, *pair.dialler.streams):
            stream.read()


def _write_all(pair: Pair, rng: random.Random | None) -> None:
    """Write on every stream from both ends, and end it."""
    mine = [pair.dialler.open("s") for _ in range(STREAMS)]
    pair.run(0.3)
    for stream in (*mine, *pair.there.streams):
        stream.write(bytes(SIZE if rng is None else rng.randint(1, SIZE)), fin=True)


def ended(seed: int) -> str:
    """Return how 300 streams end, an end with aioquic and one with qh3, every seventh datagram lost."""
    pair = Pair("aioquic", "qh3")
    _write_all(pair, random.Random(seed))
    pair.lose_every = 7
    while pair.now < 60.0 and (pair.dialler.streams or pair.listener.streams):
        pair.run(0.05)
        for stream in pair.there.streams:
            stream.read()
        for stream in list(pair.dialler.streams):
            stream.read()
    return str(pair.there.closed or f"{len(pair.dialler.streams)} left after {pair.now:.1f} s of virtual time")


def full(dialler: str, with_ours: bool, loss: float = 0.02) -> str:
    """Return how long 300 streams with 20,000 bytes each way take, one datagram in 50 lost."""
    pair, rng, whole = Pair(dialler, "qh3"), random.Random(1), OwnPackets._acknowledge
    if not with_ours:
        OwnPackets._acknowledge = lambda self, quic, now: None  # type: ignore[method-assign]
    _write_all(pair, None)
    start = pair.now
    while pair.now < start + 60.0 and pair.dialler.streams:
        _run(pair, 0.1, loss, rng)
    OwnPackets._acknowledge = whole  # type: ignore[method-assign]
    left = f"{len(pair.dialler.streams)} of {STREAMS} are left after" if pair.dialler.streams else "done in"
    ours = "with ACKs of our own" if with_ours else "the core alone"
    return f"{dialler} and qh3, {ours}: {left} {pair.now - start:.1f} s of virtual time"


def main() -> None:
    """Print what happens."""
    what, *seeds = sys.argv[1:] or ["full"]
    if what == "full":
        for dialler, with_ours in (("qh3", False), ("qh3", True), ("aioquic", True)):
            print(full(dialler, with_ours), flush=True)
    for seed in map(int, seeds if what == "ended" else ()):
        print(seed, ended(seed), flush=True)


if __name__ == "__main__":
    main()
