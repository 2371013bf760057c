"""What is explained is what is enforced: random policies, a naive reading of the same rules, and the real door."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from typing import Any

from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.preface import StreamStatus
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, World
from meshnode.trust.caller import Caller
from meshnode.trust.parties import EVERY
from meshnode.trust.policy import Policy, parse_policy, policy_of

ROUNDS = 10_000
ROLES, NAMES, SERVICES = ("dev", "ops", "db"), ("tower", "laptop"), ("web", "db-1", "db-2", "ssh")
PATTERNS = (*SERVICES, "db-*", "*", "?eb", "[sw]*")
IDS = [Identity(bytes([n]) * 32).id for n in range(4)]
Raw = dict[str, Any]


def _list(rng: random.Random, items: list[str]) -> list[str]:
    return rng.sample(items, rng.randint(1, 3))


def _random_rules(rng: random.Random) -> list[tuple[str, Raw]]:
    parties = ["any", *(f"role:{r}" for r in ROLES), *(f"name:{n}" for n in NAMES), *map(str, IDS)]
    rules = []
    for _ in range(rng.randint(0, 6)):
        rule: Raw = {"from": _list(rng, parties)}
        if rng.random() < 0.4:
            rule["to"] = _list(rng, parties)
        if rng.random() < 0.8:
            rule["services"] = _list(rng, list(PATTERNS))
        rules.append((rng.choice(("allow", "allow", "deny")), rule))
    return rules


def _text(rules: list[tuple[str, Raw]]) -> str:
    lines = []
    for kind, rule in rules:
        lines.append(f"[[{kind}]]")
        lines += [f"{key} = {value!r}" for key, value in rule.items()]
    return "\n".join(lines)


def _policy(rules: list[tuple[str, Raw]], *, from_text: bool) -> Policy:
    """Return the policy of these rules; to parse each one's text would take most of the test's time."""
    if from_text:
        return parse_policy(_text(rules).encode())
    return policy_of({kind: [rule for other, rule in rules if other == kind] for kind in ("allow", "deny")})


def _random_caller(rng: random.Random, id: NodeId) -> Caller:
    roles = frozenset(rng.sample(ROLES, rng.randint(0, 2)))
    services = rng.choice((None, None, None, ("web", "db-*"), ()))
    return Caller(id, rng.choice((None, *NAMES)), roles, services, "g" if roles or services is not None else None)


def _is(party: str, node: Caller) -> bool:
    kind, colon, rest = party.partition(":")
    if not colon:
        return party == "any" or party == str(node.id)
    return rest in node.roles if kind == "role" else rest == node.name


def _naive(rules: list[tuple[str, Raw]], caller: Caller, target: Caller, service: str) -> bool:
    """Read the rules as their page says, in the plainest way."""
    matching = [
        kind
        for kind, rule in rules
        if any(_is(party, caller) for party in rule["from"])
        and any(_is(party, target) for party in rule.get("to", ["any"]))
        and any(fnmatchcase(service, pattern) for pattern in rule.get("services", ["*"]))
    ]
    covered = caller.services is None or any(fnmatchcase(service, pattern) for pattern in caller.services)
    return covered and "deny" not in matching and "allow" in matching


class _Connection:
    """What the door looks at of a connection."""

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.dialler = True


class _Stream:
    """What the door does with a stream."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.refused: StreamStatus | None = None

    def refuse(self, status: StreamStatus, told: str = "") -> None:
        self.refused = status


def test_the_explanation_agrees_with_the_door_on_ten_thousand_random_policies() -> None:
    rng = random.Random(14)
    world = World(1)
    node = SimNode(world, "10.0.0.1", ModelEngines(world.entropy), sealer=PlainSealer)
    came: list[object] = []
    node.on_stream = lambda connection, stream: came.append(stream)  # type: ignore[method-assign, assignment]
    guard, seen = node.guard, {True: 0, False: 0}
    for turn in range(ROUNDS):
        rules = _random_rules(rng)
        policy = _policy(rules, from_text=turn % 10 == 0)
        peer = rng.choice(IDS)
        known = {peer: _random_caller(rng, peer), node.id: _random_caller(rng, node.id)}
        guard.callers = known.__getitem__
        service = rng.choice(SERVICES)
        guard.lists.services = {service: EVERY}
        guard.mesh = None
        if rng.random() < 0.5:
            guard.set_mesh(policy)
            guard.set_local(None)
        else:
            guard.set_local(policy)
        expected = _naive(rules, known[peer], known[node.id], service)
        explained = guard.explain(known[peer], known[node.id], service)
        stream = _Stream(service)
        came.clear()
        node.mesh.connections.on_stream(_Connection(peer), stream)  # type: ignore[arg-type]
        assert bool(came) == expected == explained.allowed, (_text(rules), known, service, explained)
        assert stream.refused is (None if expected else StreamStatus.DENIED)
        seen[expected] += 1
    assert min(seen.values()) > ROUNDS // 10, seen
