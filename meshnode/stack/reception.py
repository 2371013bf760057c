"""Sorts what is received in one turn: 1-RTT packets by connection, so that each is fed once; all else one by one.

What is paid once a call (routing, the engine's events, the reader's wake-up) is then paid once a batch, and not once a
datagram. The order of arrival holds within a connection and source; handshakes come before the 1-RTT packets of a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from meshnode.base.limits import MAX_DATAGRAM
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path
from meshnode.base.timers import Timers
from meshnode.quic.connection import Connection
from meshnode.quic.packets import CID_LENGTH, FIXED, FORM, acceptable, dcid_of, is_short

BAD_KIND = describe("drop_quic_kind", "QUIC packets of other versions, Version Negotiation, Retry")

Run = tuple[list[bytes], Path]  # datagrams from one source in the order of arrival; not empty
Feed = Callable[[Connection, list[bytes], Path, float], None]
Stranger = Callable[[bytes, bytes | None, Path, float], None]
Other = Callable[[bytes, Path, float], None]

QUIC_BIT = 0x40  # RFC 9443: set in every QUIC packet, clear in all other messages of this protocol

CID_END = 1 + CID_LENGTH


class Reception:
    """Takes runs of datagrams; ``feed`` gets the QUIC packets of connections, by connection id, whatever their source.

    A QUIC packet of no connection goes to ``stranger``, with its connection id: it may begin one. What is not QUIC goes
    to ``other``.
    """

    def __init__(
        self,
        by_cid: Mapping[bytes, Connection],
        feed: Feed,
        stranger: Stranger,
        other: Other,
        metrics: Metrics,
        timers: Timers,
    ) -> None:
        self._by_cid = by_cid
        self._feed = feed
        self._stranger = stranger
        self._other = other
        self._metrics = metrics
        self._timers = timers
        self._groups: dict[tuple[Connection, Path], list[bytes]] = {}
        self._sorting = False

    def take(self, runs: Iterable[Run], now: float) -> None:
        """Hand on all datagrams of a turn. One that raises takes none of the others along."""
        by_cid, groups = self._by_cid, self._groups
        self._sorting = True
        for datagrams, source in runs:
            first = datagrams[0]
            cid = first[1:CID_END]
            connection = by_cid.get(cid) if len(first) > CID_LENGTH and first[0] & FORM == FIXED else None
            if connection is None or (len(datagrams) > 1 and not _all_of(cid, datagrams)):
                for data in datagrams:
                    self._sort(data, source, now)
            elif (connection, source) in groups:
                groups[connection, source] = groups[connection, source] + datagrams  # the run is the caller's
            else:
                groups[connection, source] = datagrams
        self._sorting = False
        self._groups = {}
        for (connection, source), datagrams in groups.items():
            try:
                self._feed(connection, datagrams, source, now)
            except Exception as error:
                self._timers.on_error(error)

    def _sort(self, data: bytes, source: Path, now: float) -> None:
        try:
            self.deliver(data, source, now)
        except Exception as error:
            self._timers.on_error(error)

    def deliver(self, data: bytes, source: Path, now: float) -> None:
        """Take one datagram that came inside another: with the others of its connection when a turn is being sorted."""
        connection = self._by_cid.get(data[1:CID_END]) if self._sorting and is_short(data) else None
        if connection is not None:
            self._groups.setdefault((connection, source), []).append(data)
        elif data and data[0] & QUIC_BIT and len(data) <= MAX_DATAGRAM:
            self._route(data, source, now)
        else:
            self._other(data, source, now)

    def _route(self, data: bytes, source: Path, now: float) -> None:
        cid = dcid_of(data)
        connection = self._by_cid.get(cid) if cid is not None else None
        if connection is None:
            self._stranger(data, cid, source, now)
        elif not acceptable(data):
            self._metrics.count(BAD_KIND)
        else:
            self._feed(connection, [data], source, now)


def _all_of(cid: bytes, datagrams: list[bytes]) -> bool:
    """Return whether all are 1-RTT packets for one connection id: the segments of one reception nearly always are."""
    return not [data for data in datagrams if data[1:CID_END] != cid or data[0] & FORM != FIXED]
