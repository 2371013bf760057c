"""A seed's store: what 100,000 records cost, and STOREs into a full store, accepted and refused. In its own process.

The records are signed and each STORE has a token, as over the wire; unsealing is left out. CPU time, not the clock's.
Prints one JSON line.
"""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_STORED_SEED
from meshnode.base.metrics import Metrics
from meshnode.discovery.dht import Dht
from meshnode.discovery.dht.messages import Store, encode_message
from meshnode.discovery.dht.store import RecordStore
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record

NOW, WALL = 1_000.0, 1_800_000_000.0
MEASURED = 5_000  # STOREs of each sort
PUTS = 30_000  # more than the collector's period at this size
FLOOD = Addr("198.51.100.7", 4242)

Stores = list[tuple[NodeId, bytes, Addr]]


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _source(number: int) -> Addr:
    """Return an address in a network of its own, the dearest case."""
    return Addr(f"{11 + number // 65_536}.{number // 256 % 256}.{number % 256}.1", 4242)


def _unsigned(first: int, count: int, rng: random.Random) -> list[tuple[EndpointRecord, str]]:
    """Return records without signatures, which the store does not look at, of the size of signed ones."""
    found = []
    for number in range(first, first + count):
        ends = tuple(Endpoint(Addr(f"10.{rng.randrange(256)}.{rng.randrange(256)}.1", port)) for port in range(1, 4))
        owner, issued = NodeId(rng.randbytes(32)), int(WALL * 1000)
        record = EndpointRecord(owner, number, issued, 7_200, ends, encoded=rng.randbytes(180))
        found.append((record, _source(number).host))
    return found


def _put_us(store: RecordStore, records: list[tuple[EndpointRecord, str]]) -> float:
    """Return microseconds of CPU a record, those of the collector among them."""
    began = time.process_time()
    for record, host in records:
        store.put(record, host, NOW, WALL)
    return (time.process_time() - began) / len(records) * 1e6


def _stores(dht: Dht, sources: list[Addr], rng: random.Random) -> Stores:
    stores = []
    for source in sources:
        owner = Identity(rng.randbytes(32))
        ends = tuple(Endpoint(Addr(f"10.{rng.randrange(256)}.{rng.randrange(256)}.1", port)) for port in range(1, 4))
        record = sign_record(owner, seq=1, issued_ms=int(WALL * 1000), ttl=7_200, endpoints=ends)
        token = dht._holder.token(owner.id, source, NOW)
        stores.append((owner.id, encode_message(Store(bytes(8), token, record.encoded)), source))
    return stores


def _handle_us(dht: Dht, stores: Stores) -> float:
    """Return microseconds of CPU a STORE, answer included."""
    began = time.process_time()
    for sender, body, source in stores:
        dht.handle(sender, body, source, len(body) + 97, NOW, WALL)
        dht.take_effects()
    return (time.process_time() - began) / len(stores) * 1e6


def measure_here(limit: int) -> dict[str, Any]:
    """Measure in this process, whose memory then counts."""
    rng = random.Random(1)
    dht = Dht(
        Identity(rng.randbytes(32)).id,
        rng=rng,
        entropy=rng.randbytes,
        metrics=Metrics(),
        now=NOW,
        wall=WALL,
        seed_role=True,
    )
    store = dht.records
    store._limit = limit
    before = _rss_mb()
    for first in range(0, limit, MEASURED):
        _put_us(store, _unsigned(first, min(MEASURED, limit - first), rng))
    rss = _rss_mb() - before
    gc.collect()
    put = _put_us(store, _unsigned(limit, PUTS, rng))
    began = time.process_time()
    gc.collect()
    collector = time.process_time() - began
    whole = _handle_us(dht, _stores(dht, [_source(limit + PUTS + number) for number in range(MEASURED)], rng))
    flood = _stores(dht, [FLOOD] * MEASURED, rng)
    _handle_us(dht, flood[: MEASURED // 2])  # these use up what the host may exchange
    refused = _handle_us(dht, flood[MEASURED // 2 :])
    assert len(store) == limit
    return {
        "name": "dht_store",
        "records": limit,
        "rss_MB": round(rss, 1),
        "collector_ms": round(collector * 1e3, 1),
        "put_us": round(put, 1),
        "store_us": round(whole, 1),
        "refused_us": round(refused, 1),
        "refused": dht._metrics.counters.get("dht_store_refused_full", 0),
    }


def measure(limit: int = DHT_MAX_STORED_SEED) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "bench.dht_store", str(limit)]
    root = Path(__file__).resolve().parents[1]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=root).stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(measure_here(*([int(arg) for arg in sys.argv[1:]] or [DHT_MAX_STORED_SEED]))), flush=True)
