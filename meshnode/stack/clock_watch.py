"""Watch for steps of the wall clock: what this node has dated by a wrong clock is of no use to others.

A board without a battery boots years behind until NTP sets its clock, others once were ahead. Records and entries that
were dated then are expired or refused; they are signed again within a tick of the step.
"""

from __future__ import annotations

from meshnode.base.metrics import describe
from meshnode.stack.component import tell
from meshnode.stack.context import Context

STEP_S = 2.0  # between two looks; NTP slews a clock by half a millisecond a second, and a tick comes every few seconds

STEPS = describe("clock_steps", "steps of the wall clock by more than two seconds, sleep of the host included")


class ClockWatch:
    """Compares the wall clock with the monotonic one at each tick of the stack."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._offset = context.clock.wall() - context.clock.monotonic()

    def look(self, now: float) -> None:
        """Have everything that depends on the wall clock adapt, when it was set since the last look."""
        context = self._context
        doubt = context.sealer.doubt
        if doubt.is_there:
            doubt.look(now, context.sealer.skew.to_json(now)["stale_offset_s"] is not None)
        offset = context.clock.wall() - now
        step, self._offset = offset - self._offset, offset
        if abs(step) < STEP_S:
            return
        context.metrics.count(STEPS)
        context.sealer.on_clock_set(step)
        tell(context.hooks.clock_set, context.timers.on_error, now)
        context.events.on_clock_set(step)
