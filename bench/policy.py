"""Cost of one decision: in microseconds of CPU, from the cache and by reading 100 rules.

``python -m bench.policy`` prints JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from meshnode.identity.node_id import NodeId
from meshnode.trust.caller import Caller
from meshnode.trust.decision import decide
from meshnode.trust.guard import Guard
from meshnode.trust.parties import EVERY
from meshnode.trust.policy import Act, parse_policy

OWN, PEER = NodeId(b"o" * 32), NodeId(b"p" * 32)
RULES = 100


def text(rules: int = RULES) -> str:
    """Return a policy of so many rules, of which the last one allows ``x-1``."""
    allow = "".join(
        f'[[allow]]\nfrom = ["role:r{n}"]\nto = ["role:t{n}", "any"]\nservices = ["s{n}", "y{n}-*"]\n'
        for n in range(rules - 11)
    )
    deny = "".join(f'[[deny]]\nfrom = ["role:q{n}"]\nservices = ["s{n}", "x-?z"]\n' for n in range(10))
    return f'{deny}{allow}[[allow]]\nfrom = "role:dev"\nservices = "x-*"\n'


def _cost_us(ask: Callable[[], Any], count: int) -> float:
    rounds = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(count):
            ask()
        rounds.append((time.process_time() - begun) / count * 1e6)
    return median(rounds)


def run(count: int = 20_000) -> dict[str, float]:
    """Measure decisions of a guard and of its policy."""
    policy, caller = parse_policy(text().encode()), Caller(PEER, roles=frozenset({"dev", "r7"}))
    guard = Guard(OWN)
    guard.callers = lambda peer: caller if peer == PEER else Caller(OWN)
    guard.set_service("x-1", EVERY)
    guard.set_local(policy)
    assert guard.ask(Act.SERVICE, PEER, "x-1").allowed
    target = Caller(OWN)

    def uncached() -> None:
        guard._answers.clear()
        guard.ask(Act.SERVICE, PEER, "x-1")

    return {
        "cached_us": round(_cost_us(lambda: guard.ask(Act.SERVICE, PEER, "x-1"), count), 3),
        "cold_us": round(_cost_us(uncached, count // 10), 2),
        "decide_us": round(_cost_us(lambda: decide(policy, caller, target, "x-1"), count // 10), 2),
    }


if __name__ == "__main__":
    print(json.dumps(run()))
