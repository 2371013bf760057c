"""Rows of ``./dev bench scale`` about the DHT: joins, overload, a surrounded key, churn. Cores in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

from bench import dht_churn, dht_eclipse, dht_join, dht_overload, dht_store, seed_lookups
from meshnode.base.limits import DHT_MAX_STORED_SEED

Row = tuple[str, float, float, bool]


def rows(short: bool) -> Iterator[Row]:
    """Yield what, measured, target, whether more is better."""
    for nodes in (10, 40) if short else (10, 40, 1_000):
        joined = dht_join.measure(nodes)
        yield f"a join at {nodes} nodes, DHT only: datagrams", joined["datagrams"], 150.0, False
        yield f"a join at {nodes} nodes, DHT only: kB", joined["bytes"] / 1000, 100.0, False
    yield from _store(short)
    size, seconds = (24, 20.0) if short else (60, 60.0)
    able, asked = (dht_overload.run_load(load, nodes=size, seconds=seconds) for load in (1.0, 4.0))
    share = asked["right_per_s"] / max(able["right_per_s"], 0.01)
    yield f"lookups at 4 times what {size} nodes bear, of those at once: share", share, 0.7, True
    nodes, foes = (60, (24,)) if short else (1_000, (8, 64, 1_000))
    for crowd in foes:
        for priced, seeds in ((0.0, True), (1.0, False)):
            found = dht_eclipse.measure(nodes, crowd, priced=priced, with_seeds=seeds)
            by = "seeds" if seeds else "prices"
            yield f"newest of 40, {crowd} ground ids, {nodes} nodes, {by}", found["newest"], 39.0, True
    churned = dht_churn.measure(40, 1_200.0, 20) if short else dht_churn.measure()
    yield "churn, half in 10 minutes: dead contacts, share", churned["dead_share"], 0.1, False
    yield "churn: right lookups, share", churned["right"] / churned["of"], 1.0, True


def _store(short: bool) -> Iterator[Row]:
    small, full = (dht_store.measure(limit) for limit in ((2_000, 8_000) if short else (10_000, DHT_MAX_STORED_SEED)))
    what = f"a seed's full store of {full['records']:,}"
    yield f"{what}: a record put, us of CPU", full["put_us"], 50.0, False
    yield f"{what}: the same, of a store of {small['records']:,}: ratio", full["put_us"] / small["put_us"], 1.5, False
    yield f"{what}: whole STOREs a second and core, not unsealed", 1e6 / full["store_us"], 5_000.0, True
    yield f"{what}: a STORE refused for its host has most, us of CPU", full["refused_us"], 50.0, False
    yield f"{what}: MB", full["rss_MB"], 250.0, False
    asked = seed_lookups.measure(5_000 if short else 240_000)
    what = f"{asked['requests']:,} lookups of many clients at a seed, 6,000 a second"
    yield f"{what}: share that is heard", asked["heard"], 1.0, True
    yield f"{what}: a second and core, unsealed and sealed", 1e6 / asked["us"], 10_000.0, True
    yield f"{what}: MB of the replay guard and caches", asked["guard_MB"], 40.0, False
