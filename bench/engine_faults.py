"""Faults of qh3's core that ``docs/explanation/engine-request.md`` describes, made again in virtual time.

``python -m bench.engine_faults ended [SEED ...]`` ends 300 streams at once under loss; ``full`` has both ends fill
their congestion windows and asks the core for an acknowledgement.
"""

from __future__ import annotations

import random
import sys
from typing import Any

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


def full(loss: float = 0.02) -> str:
    """Return what qh3's core sends when an ACK is due and its window is full, both ends with qh3."""
    pair, rng = Pair("qh3", "qh3"), random.Random(1)
    _write_all(pair, None)
    _run(pair, 0.14, loss, rng)
    engine: Any = pair.dialler.engine
    core = engine._core
    before = f"{core.bytes_in_flight} bytes in flight, window {core.congestion_window}"
    core.send_ping(0)
    asked = core.poll_transmit(pair.now)
    _run(pair, 60.0, loss, rng)
    return f"{before}; asked for a packet: {asked}; {len(pair.dialler.streams)} of {STREAMS} left after 60 s"


def main() -> None:
    """Print what happens."""
    what, *seeds = sys.argv[1:] or ["full"]
    if what == "full":
        print(full())
    for seed in map(int, seeds if what == "ended" else ()):
        print(seed, ended(seed), flush=True)


if __name__ == "__main__":
    main()
