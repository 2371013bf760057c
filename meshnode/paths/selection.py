"""The rule by which the sending path of a peer is chosen (docs/explanation/path-selection.md).

``choose`` is pure: the candidates and an event give a decision. Each side decides only its own sending path: following
the other side's choice makes both flap. For an answered probe the first rule of ``RULES`` that applies decides.

A path that works is not left for one that is not validated at the size that QUIC needs: small probes pass where its
packets do not. One that has failed is left at once, and where that was wrong, ``PathMtu`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.path_reason import PathReason
from meshnode.base.value import value
from meshnode.paths.candidate import NEVER, Candidate, path_kind

SAME_MOVE_S = 0.3  # MOVED probes of one burst arrive from several addresses: the first one wins
SAME_MOVE_DETOUR_S = 5.0  # one that comes by a relay is no other move for so long: relays, and busy hosts, are late
HYSTERESIS_RATIO, HYSTERESIS_S = 0.8, 0.005
MIN_RTT_SAMPLES = 2  # before two paths' round trips are compared
LOSSES_TO_LEAVE = 3  # of the last 8 probes: at 200 ms, a relay that drops half is left after about 1.3 s
MIN_OUTCOMES = 2  # of another relay, before it is preferred


@value
class Situation:
    """Inputs of a decision beside the event. Times are monotonic seconds.

    ``previous`` was validated and in use before ``current``; ``silent`` is true while an expected packet is overdue;
    ``moved_at`` is when the peer's last MOVED came; ``networks`` are those of this host (address, prefix length);
    ``dialled_at`` is when the dial began that is not done yet.
    """

    now: float
    current: Candidate | None = None
    previous: Candidate | None = None
    silent: bool = False
    moved_at: float = NEVER
    networks: tuple[tuple[str, int], ...] = ()
    dialled_at: float | None = None


@value
class ProbeAnswered:
    """Our probe to ``found``, sent at ``sent``, went round trip."""

    found: Candidate
    sent: float


@value
class PeerMoved:
    """A fresh sealed MOVED of the peer came from ``found``."""

    found: Candidate


@value
class MoveUnconfirmed:
    """The address in use, which a MOVED brought, did not answer in time."""


@value
class RelaysCompared:
    """Probes on the relay in use and on ``others`` have shown what each loses."""

    others: tuple[Candidate, ...]


Event = ProbeAnswered | PeerMoved | MoveUnconfirmed | RelaysCompared


@value
class Decision:
    """Use ``to`` from now on, for that reason; ``to`` is None when the path in use stays.

    ``failed``: the path in use no longer carries packets, so what is in flight on it is likely lost. ``validate``: this
    one would be used if it were known to carry full-sized datagrams.
    """

    to: Candidate | None = None
    reason: PathReason | None = None
    failed: bool = False
    validate: Candidate | None = None


STAY = Decision()


# ---- the rules for an answered probe: found, current, when it was sent, the situation

Test = Callable[[Candidate, Candidate, float, Situation], bool]


def _fits(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    return current.is_too_small


def _answers_first(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    return at.silent and current.last_heard < sent


def _claimed(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    """The peer asked for this path (see ``Validation.claim``), and answers there."""
    if found.rank < current.rank and not found.mtu.carries:
        return False  # if it does, it is of a better kind
    if found.rank > current.rank:  # our own path was probed when the claim came: it has had its time to answer
        had_time = at.now - found.claimed >= (current.rtt or 0.0)
        return found.claimed > current.answered and sent >= found.claimed and had_time
    return found.claimed > current.last_heard


def _first_contact(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    """The dial's path was not heard since it began, though it may have been before."""
    return at.dialled_at is not None and current.last_heard < at.dialled_at


def _better_kind(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    return current.is_valid and found.rank < current.rank and found.trusted(sent, at.now)


def _nearer(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    """On our own network, where the other path leads out and, by a NAT that hairpins, in again.

    This answer counts, not the smoothed round trip: the first ones of a busy host are slow.
    """
    if not current.is_valid or found.rank != current.rank:
        return False
    near = path_kind(found.path, at.networks) == "lan" and path_kind(current.path, at.networks) != "lan"
    in_time = current.rtt is None or at.now - sent < current.rtt + HYSTERESIS_S
    return near and in_time and found.trusted(sent, at.now)


def _faster(found: Candidate, current: Candidate, sent: float, at: Situation) -> bool:
    if not current.is_valid or found.rank != current.rank or found.rtt is None or current.rtt is None:
        return False
    if found.samples < MIN_RTT_SAMPLES or current.samples < MIN_RTT_SAMPLES:
        return False
    return found.rtt < current.rtt * HYSTERESIS_RATIO and found.rtt < current.rtt - HYSTERESIS_S


# reason, when it applies, whether the path in use has failed, and whether the other must carry full-sized datagrams
RULES: tuple[tuple[PathReason, Test, bool, bool], ...] = (
    (PathReason.TOO_SMALL, _fits, True, True),
    (PathReason.ANSWERED, _answers_first, True, False),
    (PathReason.VALIDATED, _claimed, True, False),
    (PathReason.VALIDATED, _first_contact, True, False),
    (PathReason.BETTER_KIND, _better_kind, False, True),
    (PathReason.NEARER, _nearer, False, True),
    (PathReason.FASTER, _faster, False, True),
)


# ---- the choice


def choose(event: Event, at: Situation) -> Decision:
    """Return what the event means for the sending path.

    ``STAY`` when the path in use remains, and while there is none. Pure: the caller carries the decision out.
    """
    current = at.current
    if current is None:
        return STAY
    match event:
        case ProbeAnswered(found, sent) if found is not current:
            return _after_answer(found, current, sent, at)
        case PeerMoved(found) if _may_follow(found, current, at):
            return Decision(found, PathReason.PEER_MOVED, failed=True)
        case MoveUnconfirmed() if not current.is_valid and at.previous is not None and at.previous.is_valid:
            return Decision(at.previous, PathReason.UNCONFIRMED, failed=True)
        case RelaysCompared(others) if current.losses >= LOSSES_TO_LEAVE:
            return _lossless(others)
    return STAY


def _after_answer(found: Candidate, current: Candidate, sent: float, at: Situation) -> Decision:
    wanted = None
    for reason, applies, failed, full_size in RULES:
        if not applies(found, current, sent, at):
            continue
        if full_size and not found.mtu.carries:
            wanted = found
        elif not found.is_too_small or current.is_too_small:
            return Decision(found, reason, failed)
    return Decision(validate=wanted) if wanted is not None else STAY


def _may_follow(found: Candidate, current: Candidate, at: Situation) -> bool:
    if found.is_too_small and not current.is_too_small:
        return False  # it comes by other paths too
    is_detour = found.rank > 0 and found.rank >= current.rank
    same_move = SAME_MOVE_DETOUR_S if is_detour else SAME_MOVE_S
    return found is not current and at.now - at.moved_at > same_move


def _lossless(others: tuple[Candidate, ...]) -> Decision:
    for other in others:
        carries = other.is_valid and not other.is_too_small
        if carries and other.losses == 0 and len(other.outcomes) >= MIN_OUTCOMES:
            return Decision(other, PathReason.FEWER_LOSSES)
    return STAY
