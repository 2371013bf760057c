"""Lookups that a seed bears on one core: GETs of many clients, unsealed, answered and sealed. A process of its own.

Each client has a network of its own and its key is known; the seed holds 10,000 records and has 100 contacts. They come
at a rate of their own in virtual time, so that the replay guard holds what it would; what is measured is CPU. Sockets
and the event loop are left out. Prints one JSON line.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.dht_store import NOW, WALL, _put_us, _rss_mb, _source, _unsigned
from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_BODY
from meshnode.base.metrics import Metrics
from meshnode.discovery.dht import Dht, SendSealed
from meshnode.discovery.dht.messages import Get, encode_message
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer

CLIENTS = 1_000
RATE = 6_000.0  # a second: 360,000 a minute, of which the guard remembers 100,000 a generation
RECORDS, CONTACTS = 10_000, 100


class _Time:
    """The clock of all nodes."""

    now = NOW

    def monotonic(self) -> float:
        """Return virtual seconds."""
        return self.now

    def wall(self) -> float:
        """Return virtual Unix seconds."""
        return WALL + self.now - NOW


def _sealer(identity: Identity, clock: _Time, rng: random.Random) -> Sealer:
    return Sealer(identity, MeshKey(bytes(32)), clock, rng.randbytes, born=WALL - 100.0)


def measure_here(count: int) -> dict[str, Any]:
    """Have ``count`` GETs answered in this process."""
    rng, clock = random.Random(1), _Time()
    identity = Identity(rng.randbytes(32))
    seed = _sealer(identity, clock, rng)
    seed.senders.strangers.spare = lambda now: True
    dht = Dht(
        identity.id,
        rng=rng,
        entropy=rng.randbytes,
        metrics=Metrics(),
        now=NOW,
        wall=WALL,
        seed_role=True,
    )
    records = _unsigned(0, RECORDS, rng)
    _put_us(dht.records, records)
    for number in range(CONTACTS):
        dht._table.answered(Identity(rng.randbytes(32)).id, _source(number))
    clients = [_sealer(Identity(rng.randbytes(32)), clock, rng) for _ in range(CLIENTS)]
    sources = [_source(1_000 + number) for number in range(CLIENTS)]
    spent = heard = answered = 0.0
    before = _rss_mb()
    for first in range(0, count, CLIENTS):
        sealed: list[tuple[bytes, Addr]] = []
        for number in range(CLIENTS):
            clock.now = NOW + (first + number) / RATE
            key = rng.choice(records)[0].id.dht_key
            body = encode_message(Get(rng.randbytes(8), key), pad_to=DHT_MAX_BODY)
            sealed.append((clients[number].seal(identity.id, body), sources[number]))
        began = time.process_time()
        for datagram, source in sealed:
            opened = seed.unseal(datagram, source)
            if opened is None:
                continue
            heard += 1
            dht.handle(opened[0], opened[1], source, len(datagram), clock.now, clock.wall())
            for effect in dht.take_effects():
                if isinstance(effect, SendSealed) and effect.addr == source:
                    seed.seal(effect.peer, effect.body)
                    answered += 1
        spent += time.process_time() - began
    return {
        "name": "seed_lookups",
        "requests": count,
        "heard": heard / count,
        "answered": round(answered / count, 3),
        "drops": seed.drops,
        "us": round(spent / count * 1e6, 1),
        "guard_MB": round(_rss_mb() - before, 1),
    }


def measure(count: int = 240_000) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "bench.seed_lookups", str(count)]
    root = Path(__file__).resolve().parents[1]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=root).stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(measure_here(*([int(arg) for arg in sys.argv[1:]] or [240_000]))), flush=True)
