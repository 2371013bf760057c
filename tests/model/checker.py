"""Tries all interleavings of a few sessions with an active attacker, and holds each state against what was promised.

The attacker is the network, and a member with a key of its own, E. A session takes any message that the attacker can
build; what a session sends, the attacker knows at once. Both are as bad as it can be, so no order is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.protocol import ATTACKER, Defence, Role
from tests.model.terms import Knowledge, Term, share

SECRECY = "secrecy of data"
AGREEMENT = "injective agreement"
UNKNOWN_SHARE = "no unknown key share"
KNOCKS = "a first flight is answered once, when its dialler sent it"
STRONGEST = "the best group that both ends have"
FORWARD = "forward secrecy"
QUANTUM = "secrecy of recorded data from a quantum computer"


@dataclass(frozen=True)
class Scene:
    """Sessions, and whose keys the attacker has: from the start, or when all is over."""

    name: str
    dials: tuple[tuple[str, str], ...]  # the dialler, the node dialled
    listens: tuple[str, ...]
    stolen: str = ""


SCENES = (
    Scene("one dial", (("A", "B"),), ("B",)),
    Scene("one dial, a replay", (("A", "B"),), ("B", "B")),
    Scene("a dial to the attacker and one that it may carry on", (("A", "E"), ("A", "B")), ("B",)),
    Scene("a dial to the attacker, another node listens", (("A", "E"),), ("B",)),
    Scene("both dial each other", (("A", "B"), ("B", "A")), ("A", "B")),
    Scene("the dialler's key is stolen", (("A", "B"),), ("B",), stolen="A"),
    Scene("the listener's key is stolen", (("A", "B"),), ("B",), stolen="B"),
    Scene("the listener's key is stolen, a dial to the attacker", (("A", "E"),), ("B",), stolen="B"),
)
QUICK = tuple(scene for scene in SCENES if len(scene.dials) + len(scene.listens) < 4)


@dataclass(frozen=True)
class Attack:
    """A promise that is broken, where, and how."""

    promise: str
    scene: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.promise}: broken in the scene '{self.scene}'", *(f"  {line}" for line in self.trace)]
        return "\n".join(lines)


@dataclass
class Result:
    """What was looked at, and the shortest attack on each promise that was found."""

    states: int
    attacks: dict[str, Attack]


State = tuple[tuple[Role, ...], Knowledge]


def check(
    scenes: tuple[Scene, ...] = SCENES, without: frozenset[Defence] = frozenset(), until: str | None = None
) -> Result:
    """Look at all states of all scenes, of the protocol without some defences; stop when ``until`` is broken."""
    result = Result(0, {})
    for scene in scenes:
        if until not in result.attacks:
            _check_scene(scene, without, result, until)
    return result


def _check_scene(scene: Scene, without: frozenset[Defence], result: Result, until: str | None) -> None:
    level: dict[object, tuple[State, tuple[str, ...]]] = {}
    start = _start(scene, without)
    level[_key(start)] = (start, ())
    seen = set(level)
    while level and until not in result.attacks:  # breadth first: the first attack is a shortest one
        after: dict[object, tuple[State, tuple[str, ...]]] = {}
        for state, trace in level.values():
            result.states += 1
            for promise in _broken(scene, state):
                result.attacks.setdefault(promise, Attack(promise, scene.name, trace))
            for said, following in _moves(state):
                if (key := _key(following)) not in seen:
                    seen.add(key)
                    after[key] = (following, (*trace, said))
        level = after


def _key(state: State) -> object:
    roles, known = state
    return roles, known.terms


def _start(scene: Scene, without: frozenset[Defence]) -> State:
    own = [("sk", ATTACKER), ("exp", "E"), ("cid", "E"), ("nonce", "E")]
    known = Knowledge([*own, share(("exp", "E"), True)]).plus(*(("sk", name) for name in scene.stolen))
    roles = []
    for number, (name, peer) in enumerate(scene.dials, 1):
        role, sent = Role(name, number, peer, True, without).begin()
        roles.append(role)
        known = known.plus(*sent)
    for number, name in enumerate(scene.listens, 5):
        roles.append(Role(name, number, "", False, without))
    return tuple(roles), known


def _moves(state: State) -> Iterator[tuple[str, State]]:
    roles, known = state
    for at, role in enumerate(roles):
        nonces = frozenset(
            other.nonce for other in roles if not other.dials and other.name == role.name and other.nonce
        )
        for step in role.steps(known, nonces):
            if step.needs is None or known.builds(step.needs):
                following = (*roles[:at], step.role, *roles[at + 1 :])
                end = "dialler" if role.dials else "listener"
                yield f"{role.name}{role.number}, {end}, takes: {step.said}", (following, known.plus(*step.sent))


# ---- what was promised


def _broken(scene: Scene, state: State) -> Iterator[str]:
    roles, known = state
    honest = [role for role in roles if role.peer in ("A", "B") and _counts(scene, role)]
    if any(known.builds(role.secret) for role in honest if _has_sent(role)):
        yield SECRECY
    done = [role for role in honest if role.committed]
    if not all(_agrees(role, roles, done) for role in done):
        yield AGREEMENT
    if any(_shares_unknown(one, other) for one in done for other in roles if other.key and other is not one):
        yield UNKNOWN_SHARE
    if not scene.stolen and not _knocks_hold(roles):
        yield KNOCKS
    if Defence.HYBRID not in roles[0].without and any(not role.hybrid for role in done):
        yield STRONGEST
    if not scene.stolen:
        yield from _later(roles, known)


def _counts(scene: Scene, role: Role) -> bool:
    """Of a stolen key its holder may be impersonated; to its holder nothing else may be."""
    return not scene.stolen or role.name == scene.stolen


def _has_sent(role: Role) -> bool:
    return role.committed or (role.dials and role.stage == 1)


def _agrees(role: Role, roles: tuple[Role, ...], done: list[Role]) -> bool:
    """True when one session of the peer had the other part with the same ids and key, and this end no second one."""
    partners = [
        other
        for other in roles
        if (other.name, other.peer, other.dials) == (role.peer, role.name, not role.dials)
        and (other.key, other.cid) == (role.key, role.cid)
        and _has_sent(other)
    ]
    same = [other for other in done if (other.name, other.dials, other.key) == (role.name, role.dials, role.key)]
    return len(partners) == len(same) == 1


def _shares_unknown(one: Role, other: Role) -> bool:
    return one.key == other.key and {one.name, one.peer} != {other.name, other.peer}


def _knocks_hold(roles: tuple[Role, ...]) -> bool:
    """True when each first flight that a listener has answered was sent to it, once."""
    dialled = [(role.name, role.peer, role.cid) for role in roles if role.dials]
    for role in roles:
        if not role.dials and role.peer in ("A", "B"):
            if (role.peer, role.name, role.cid) not in dialled:
                return False
            dialled.remove((role.peer, role.name, role.cid))
    return True


def _later(roles: tuple[Role, ...], known: Knowledge) -> Iterator[str]:
    """What becomes of the data of finished sessions when keys are stolen, or X25519 is broken, afterwards."""
    secrets: list[Term] = [role.secret for role in roles if role.committed and role.peer in ("A", "B")]
    if not secrets:
        return
    stolen = known.plus(("sk", "A"), ("sk", "B"))
    if any(map(stolen.builds, secrets)):
        yield FORWARD
    if any(map(known.plus(quantum=True).builds, secrets)):
        yield QUANTUM
