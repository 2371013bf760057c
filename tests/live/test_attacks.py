"""The short form of each family of attacks: counts and bytes on live nodes, which a busy machine does not change.

Most of an attack is waiting, so four families run at a time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from attacks.__main__ import families, short_figures

AT_ONCE = 4
LONGEST = ("amplification", "gossip_floods", "service_hijack", "floods", "mdns", "dht_quota", "tunnel")  # go first

Figures = dict[str, float]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Figures | str]]]:
    """The families that this run has chosen, each in a process."""
    chosen = [name for name in families() if any(f"[{name}]" in item.nodeid for item in request.session.items)]
    chosen.sort(key=lambda name: LONGEST.index(name) if name in LONGEST else len(LONGEST))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, context) as processes:
        yield {name: processes.submit(short_figures, name) for name in chosen}
        processes.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", families())
def test_every_limit_that_the_short_form_measures_is_held(name: str, running: dict[str, Future[Figures | str]]) -> None:
    figures = running[name].result()
    if isinstance(figures, str):
        pytest.skip(f"{name}: {figures}")
    assert figures, "a short form measures something"
    rows = families()[name].ROWS
    missed = {key: figure for key, figure in figures.items() if not rows[key].holds(figure)}
    assert not missed
