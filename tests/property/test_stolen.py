"""A stolen key in any order of events: once it is revoked, or what its grants rest on, no node that knows admits it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import GrantReject
from meshnode.runtime.revocation_store import packed, parse_statements
from meshnode.sim.world import SimNode, World
from meshnode.trust.revocation import sign_revocation
from tests.property.test_lineage import AUTHORITY, WAYS, Holder
from tests.sim.revoked import link_of, make_node

DAY = 86_400
EVENTS = {
    "renew": 3,
    "renew elsewhere": 3,
    "replace": 2,
    "hide": 2,
    "revoke the first grant": 1,
    "revoke a key": 1,
    "restart": 2,
    "the clock is ahead": 1,
    "the clock is behind": 1,
    "the clock is right": 1,
}


class Judge:
    """A node that hears of revocations, restarts, and has a clock that is set."""

    def __init__(self) -> None:
        self.world = World(7)
        self.node: SimNode = self._begin()

    def _begin(self) -> SimNode:
        return make_node(self.world, authority=AUTHORITY.id, gossip=False, host="10.0.0.1")

    def restart(self) -> None:
        saved, clock = packed(self.node.mesh.context.revoking), self.node.clock.error
        self.node.kill()
        self.node = self._begin()
        self.node.clock.error = clock
        link_of(self.node).restore(parse_statements(saved))

    def set_clock(self, ms: float) -> None:
        """Set it, and let the node run until it has looked at what it holds."""
        self.node.clock.error = ms / 1000 - self.world.wall()
        self.node.mesh.tick(self.world.now)
        self.world.run(100.0)

    def refuses(self, holder: Holder) -> GrantReject | None:
        error = self.node.mesh.context.standings.take(holder.key.id, (*holder.grants, *holder.link))
        return error.reason if error is not None else None


@given(
    st.sampled_from(WAYS),
    st.lists(st.sampled_from([event for event, weight in EVENTS.items() for _ in range(weight)]), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_once_it_is_revoked_a_stolen_key_is_admitted_no_more_whatever_happens_before_and_after(
    way: str, events: list[str]
) -> None:
    holder, judge, revoked = Holder(way), Judge(), False
    for number, event in enumerate(events):
        if event.startswith("revoke"):
            judge.set_clock(holder.now)
            target = holder.owed[0] if event.endswith("grant") else bytes(holder.keys[number % len(holder.keys)].id)
            judge.node.mesh.context.revoking.take(sign_revocation(AUTHORITY, target, time=holder.now).encoded)
            revoked = True
        elif event == "restart":
            judge.restart()
        elif event.startswith("the clock"):
            off = {"ahead": 400 * DAY, "behind": -400 * DAY, "right": 0}[event.split()[-1]]
            judge.set_clock(holder.now + 1000 * off)
        else:
            holder.step(event)
    judge.set_clock(holder.now)
    assert judge.refuses(holder) is (GrantReject.REVOKED if revoked else None)
