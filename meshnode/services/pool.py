"""The targets of a service, and which of them work. Sans I/O.

A target that fails is tried last from then on; where checks alone judge (``strict``), it is not tried at all until they
find it well. It is well again after ``RISE`` checks in a row, or a caller's connection, so that one that comes and goes
does not have the service announced each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from meshnode.base.value import state
from meshnode.services.ends import End

RISE = 2  # checks in a row that find a target well again
FALL = 2  # checks in a row without an answer in time that find it failing; any other failure counts at once
CHECK_S, CHECK_JITTER = 0.9, 0.2  # between checks of one target, and by which part of it they differ
FAILING_S = 1.0  # between checks of one that fails
NO_ANSWER = "no answer in time"


@state
class Member:
    """One target: ``error`` is why it does not work, "" while it does; ``users`` are its connections."""

    end: End
    error: str = ""
    users: int = 0
    turn: int = 0
    well: int = 0  # checks in a row
    late: int = 0


class Pool:
    """The targets of one service, all well at first."""

    def __init__(self, ends: Sequence[End], rng: random.Random, *, strict: bool = False) -> None:
        self.members = [Member(end) for end in ends]
        self._rng = rng
        self._strict = strict
        self._turns = 0

    @property
    def healthy(self) -> bool:
        """True while any target works."""
        return any(not member.error for member in self.members)

    @property
    def error(self) -> str:
        """Why no target works; "" while any does."""
        return "" if self.healthy else self.members[0].error

    def order(self) -> list[Member]:
        """Return the targets in the order in which a caller tries them: that with the fewest connections first."""
        asked = [member for member in self.members if not (self._strict and member.error)]
        return sorted(asked, key=lambda member: (bool(member.error), member.users, member.turn))

    @contextmanager
    def use(self, member: Member) -> Iterator[None]:
        """Count a connection to a target while the block runs."""
        end = self.begin(member)
        try:
            yield
        finally:
            end()

    def begin(self, member: Member) -> Callable[[], None]:
        """Count a connection to a target, until what this returns is called."""
        self._turns += 1
        member.turn = self._turns
        member.users += 1

        def end() -> None:
            member.users -= 1

        return end

    # ---- what happens: each returns whether the target's state has changed

    def on_failed(self, member: Member, why: str) -> bool:
        """Note that a caller's connection was not accepted."""
        changed = not member.error
        member.error, member.well = why, 0
        return changed

    def on_connected(self, member: Member) -> bool:
        """Note that a caller's connection was accepted."""
        if not member.error or self._strict:
            return False
        member.error = ""
        return True

    def on_check(self, member: Member, why: str) -> bool:
        """Note what a check found: "" for a target that is well."""
        if why:
            member.late = member.late + 1 if why == NO_ANSWER else FALL
            return self.on_failed(member, why) if member.late >= FALL or member.error else False
        member.late, member.well = 0, member.well + 1
        if not member.error or member.well < RISE:
            return False
        member.error = ""
        return True

    def pause(self, member: Member) -> float:
        """Return the seconds until the next check of a target; those of many are not at once."""
        pause = FAILING_S if member.error else CHECK_S
        return pause * self._rng.uniform(1 - CHECK_JITTER, 1 + CHECK_JITTER)
