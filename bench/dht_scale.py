"""Rows of ``./dev bench scale`` about the DHT: joins, overload, a surrounded key, churn. Cores in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

from bench import dht_churn, dht_eclipse, dht_join, dht_overload

Row = tuple[str, float, float, bool]


def rows(short: bool) -> Iterator[Row]:
    """Yield what, measured, target, whether more is better."""
    for nodes in (10, 40) if short else (10, 40, 1_000):
        joined = dht_join.measure(nodes)
        yield f"a join at {nodes} nodes, DHT only: datagrams", joined["datagrams"], 150.0, False
        yield f"a join at {nodes} nodes, DHT only: kB", joined["bytes"] / 1000, 100.0, False
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
