"""The node's life in the log, a line each: connections, paths, moves, refusals.

Peers cause most of these lines, so each peer has a rate, and all of them together have one (``LogRate``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from meshnode.base.clock_offset import RELEASED_S, date
from meshnode.base.log_lines import LogRate, rated_logger
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path, in_words
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint
from meshnode.quic.connection import Connection
from meshnode.trust.decision import Decision, noun_of
from meshnode.trust.policy import Act
from meshnode.trust.revocation import Revocation

log = rated_logger("meshnode.node")

LEFT_OUT = describe("log_left_out", "lines about peers that were not logged: there were too many")


TWIN_HINT = "stop one of the two, and give it a key of its own (meshnode keygen)"


class Journal:
    """Logs what happens to one node. ``monotonic`` returns seconds."""

    def __init__(self, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self.begun = monotonic()
        self.rate = LogRate(monotonic, partial(metrics.count, LEFT_OUT))

    def tell(self, level: int, peer: NodeId, text: str, *values: object) -> None:
        """Log a line that ``peer`` has caused, unless there were too many of it, or of all."""
        log.log(level, text, *values, extra={"rate": self.rate, "peer": peer})

    def on_connection(self, connection: Connection, up: bool) -> None:
        """Tell of a connection that is ready, or over."""
        peer, error = connection.peer, connection.error
        if up:
            self.tell(
                logging.INFO, peer, "%s: connected (%s)", peer.short, "dialled" if connection.dialler else "by it"
            )
        else:
            # the text alone: a record that is kept must not keep the error, whose traceback holds the connection
            why = str(error) if error else "closed"
            self.tell(logging.INFO, peer, "%s: connection is over: %s", peer.short, why)

    def on_path(self, peer: NodeId, old: Path | None, new: Path | None, why: str) -> None:
        """Tell of a change of path."""
        was = f", was {_named(old)}" if old not in (None, new) else ""
        self.tell(logging.INFO, peer, "%s: path %s (%s)%s", peer.short, _named(new), why, was)

    def on_refused(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Tell of what was refused to a peer: a connection, a service, a topic, a name."""
        self._decided(logging.INFO, "refused", peer, act, what, decision)

    def on_cut(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Tell of a connection or a stream that was ended, for the peer is allowed it no longer."""
        self._decided(logging.INFO, "cut", peer, act, what, decision)

    def on_observed(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Tell of what a policy that only observes would refuse."""
        self._decided(logging.WARNING, "would be refused", peer, act, what, decision)

    def _decided(self, level: int, text: str, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        self.tell(level, peer, "%s: %s %s: %s", peer.short, noun_of(act, what), text, decision.why)

    def on_key_used_twice(self, own: NodeId, node: NodeId) -> None:
        """Tell that two hosts use one key."""
        if node == own:
            log.warning("another host uses the same key as this node: %s", TWIN_HINT)
        else:
            self.tell(logging.WARNING, node, "two hosts use the same key, that of %s: %s", node.short, TWIN_HINT)

    def on_stood_down(self, down: bool) -> None:
        """Tell that this node gave way to another process with its key, or goes on."""
        if down:
            log.error("this node stands down and serves nothing: another host uses its key; %s", TWIN_HINT)
        else:
            log.warning("the other host with this node's key is gone: this node serves again")

    def on_revoked(self, revocation: Revocation) -> None:
        """Tell of a revocation that this node has taken."""
        kind = "the key" if revocation.is_key else "the grant"
        why = f": {revocation.reason}" if revocation.reason else ""
        text, target, issuer = "%s %s is revoked, by %s%s", revocation.target_text, revocation.issuer
        self.tell(logging.WARNING, issuer, text, kind, target, issuer.short, why)

    def on_start(self, own: NodeId, endpoints: tuple[Endpoint, ...], wall: float) -> None:
        """Tell that the node runs."""
        log.info("node %s runs at %s", own.short, _listed(endpoints))
        if wall < RELEASED_S:
            log.warning(
                "the clock says %s, before this version was made: no node will answer until it is set",
                date(wall),
            )

    def on_move(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Tell that this host's addresses or ways out have changed."""
        log.info("this node moved: it is at %s", _listed(endpoints))

    def on_clock_set(self, step: float, wall: float) -> None:
        """Tell that the wall clock was set, or the host has slept."""
        way = "forward" if step > 0 else "back"
        log.warning(
            "the clock was set %s by %.0f s, to %s: what was dated before is signed again", way, abs(step), date(wall)
        )

    def on_stop(self, own: NodeId) -> None:
        """Tell that the node ends."""
        log.info("node %s stops", own.short)


def _named(path: Path | None) -> str:
    return in_words(path) if path is not None else "none"


def _listed(endpoints: tuple[Endpoint, ...]) -> str:
    return ", ".join(map(str, endpoints)) or "no address"
