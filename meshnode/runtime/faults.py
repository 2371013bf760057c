"""Exceptions that must not stop a node: in timers, in what a packet causes, in what the kernel tells."""

from __future__ import annotations

import logging

from meshnode.base.bounded import BoundedDict
from meshnode.base.metrics import Metrics, describe

log = logging.getLogger("meshnode.node")

FAULTS = describe("faults", "exceptions in timers and callbacks that were caught, so that the node goes on")
MAX_KINDS = 256  # remembered as logged


class Faults:
    """Counts the exceptions of one node, and logs the first of each kind: its type and the line that raised it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged: BoundedDict[tuple[type[Exception], str, int], None] = BoundedDict(MAX_KINDS)

    def take(self, error: Exception) -> None:
        """Count an exception; log it with its traceback when it is the first of its kind."""
        self._metrics.count(FAULTS)
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        kind = (
            type(error),
            trace.tb_frame.f_code.co_filename if trace is not None else "",
            trace.tb_lineno if trace is not None else 0,
        )
        if kind not in self._logged:
            self._logged[kind] = None
            log.error("caught, and the node goes on (logged once; counted in `faults`): %r", error, exc_info=error)
