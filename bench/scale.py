"""``./dev bench scale``: what a node costs as a mesh grows. One table of parts; each says what it leaves out.

A part is a function that yields rows of ``./dev bench`` and takes ``short``: the short form runs in the tests, where it
has the same rows at smaller sizes. A new one is a line of ``PARTS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Row = tuple[str, float, float, bool]  # what, measured, target, whether more is better


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the bench; ``leaves_out`` is what a real mesh has and its rows do not."""

    name: str
    leaves_out: str
    rows: Callable[[bool], Iterable[Row]]


def _members(short: bool) -> Iterable[Row]:
    from bench import members

    return members.rows(short)


def _rest(short: bool) -> Iterable[Row]:
    from bench import rest

    return rest.rows(short)


def _dht(short: bool) -> Iterable[Row]:
    from bench import dht_scale

    return dht_scale.rows(short)


def _news(short: bool) -> Iterable[Row]:
    from bench import news

    return news.rows(short)


PARTS = (
    Part("members", "no QUIC, no sockets: cores on 50 ms links with 1 % loss; records are empty", _members),
    Part("dht", "no QUIC, no sockets, no gossip: DHT cores in virtual time, CPU modelled", _dht),
    Part("news", "no sockets, no asyncio: whole nodes with real QUIC in virtual time", _news),
    Part("rest", "no sockets, no asyncio: whole nodes with real QUIC in virtual time; no application", _rest),
)


def run(short: bool = False, only: Iterable[str] = ()) -> Iterator[Row]:
    """Yield the rows of all parts, or of those that ``only`` names, as they are measured."""
    wanted = dict.fromkeys(only)
    for part in PARTS:
        if not wanted or part.name in wanted:
            print(f"scale, {part.name}: without: {part.leaves_out}", file=sys.stderr)
            yield from part.rows(short)
