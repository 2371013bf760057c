"""Findings on the node's own host: its clock, what does not work while the node goes on, a key that is used twice."""

from __future__ import annotations

from collections.abc import Iterator

from meshnode.base.clock_offset import RELEASED_S, date
from meshnode.base.limits import SEAL_WINDOW_S
from meshnode.diagnosis.finding import Finding, Snapshot, note, ok, plural, problem, seconds

CLOCK_NOTE_S, CLOCK_PROBLEM_S = 2.0, 10.0
NOTE_PART, WARN_PART, PROBLEM_PART = 0.5, 0.8, 0.95  # of a grant's lifetime
JOIN = "join with a ticket (`meshnode invite` where the mesh was made)"
RENEW = "connect a node that renews grants, or join again with a new ticket"
SET_CLOCK = f"let NTP set the clocks: what is more than {SEAL_WINDOW_S:.0f} s off is dropped unanswered"


def on_clock(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare this host's clock with the peers', with this version's age, and with the silence of the seeds."""
    wall = snapshot.get("wall")
    if wall is not None and wall < RELEASED_S:
        yield problem("clock", f"this clock is wrong: it says {date(wall)}, before this version was made", SET_CLOCK)
        return
    status = snapshot.get("status", {})
    clock, counters = status.get("clock", {}), status.get("counters", {})
    dropped = int(counters.get("seal_stale", 0)) + int(counters.get("knock_stale", 0))
    offset, stale, peers = clock.get("offset_s"), clock.get("stale_offset_s"), int(clock.get("peers", 0))
    lost = f"; dropped as stale: {plural(dropped, 'datagram')}" if stale is not None else ""
    if offset is None and stale is not None and dropped >= 3:
        way = "behind" if stale < 0 else "ahead of"
        yield problem(
            "clock",
            f"members' clocks are {seconds(abs(stale))} {way} this one, and all they sent was dropped",
            SET_CLOCK,
        )
    elif offset is None:
        yield _not_compared(snapshot, lost)
    elif abs(offset) < CLOCK_NOTE_S:
        yield ok(
            "clock", f"the clock agrees with {plural(peers, 'peer')} (within {seconds(max(abs(offset), 0.1))}){lost}"
        )
    else:
        yield _clock_off(offset, peers, lost)


def _not_compared(snapshot: Snapshot, lost: str) -> Finding:
    """Suspect the clock where a node should answer and none does: a wrong clock looks like a dead network."""
    if not any(not seed.get("answers") for seed in snapshot.get("seeds", ())):
        return note("clock", f"there is no peer to compare this clock with{lost}")
    wall = snapshot.get("wall")
    said = f": it says {date(wall)}" if wall is not None else ""
    return problem(
        "clock",
        f"no node answers, and none would if this clock were {SEAL_WINDOW_S:.0f} s wrong{said}{lost}",
        f"compare it with another clock; {SET_CLOCK}",
    )


def _clock_off(offset: float, peers: int, lost: str) -> Finding:
    way = "behind" if offset > 0 else "ahead of"
    whose = "" if peers > 1 else " (or the peer's is wrong)"
    text = f"this clock is {seconds(abs(offset))} {way} {plural(peers, 'peer')}{whose}{lost}"
    return problem("clock", text, SET_CLOCK) if abs(offset) >= CLOCK_PROBLEM_S else note("clock", text, SET_CLOCK)


def on_grant(snapshot: Snapshot) -> Iterator[Finding]:
    """Tell how long the node's grant holds: from half of its lifetime on, for it should have been renewed by then."""
    trust = snapshot.get("status", {}).get("trust")
    if not trust:
        return
    if trust.get("error"):
        yield problem("grant", f"no node of this mesh admits this one: {trust['error']}", JOIN)
        return
    part, until = float(trust.get("part_over", 0.0)), date(float(trust.get("expires", 0.0)))
    roles = ", ".join(map(str, trust.get("roles") or ())) or "none"
    text = f"the grant holds until {until} (roles: {roles}; {part:.0%} of its time is over)"
    if part < NOTE_PART:
        yield ok("grant", text)
    elif part < PROBLEM_PART:
        yield note("grant", text, RENEW if part < WARN_PART else f"{RENEW}, soon")
    else:
        yield problem("grant", text, RENEW)
    for invitation in trust.get("overused") or ():
        yield problem("grant", f"the invitation {invitation} was used too often", "its ticket has leaked: revoke it")


def on_degraded(snapshot: Snapshot) -> Iterator[Finding]:
    """Tell what ``status`` lists as degraded."""
    for text in snapshot.get("status", {}).get("degraded") or ():
        yield problem("degraded", str(text), "the node goes on; it works as before once the cause is mended")
