"""``./dev chaos --seeds N``: small gossip meshes under everything at once, and what must hold all the same.

Each seed is one mesh of 8 to 20 cores that for 30 s of virtual time moves, crashes, restarts with and without memory
and with clocks that are up to two minutes wrong, leaves and comes back, is joined by crowds, is cut in two, loses,
delays, stalls, has too little CPU for what it publishes, a node surrounded by a crowd that vanishes, keys used by two
nodes at once, nodes whose clocks are ten minutes wrong, and liars; six of its members are listed, others as they offer:

- no entry counts anywhere that its origin did not sign, or that is over or of the future by its receiver's clock;
- at no node does the seq of a key go back; a name that was used there does not come to mean another node in silence;
- every view, queue and store keeps its bound, at every step.

Then all that ends but the wrong clocks, and within 90 s, leaving aside those that are ten minutes wrong:

- the views of those that live form one graph, none of them is taken for gone, and each is where its own entry says;
- what one stores, all do, unless it is over by their clock or their bound is full of what is newer.

A seed that fails says so and how to repeat it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import sys
import time
from functools import partial
from typing import Any

from bench import invariants
from bench.chaos_lies import LABELS, lies
from bench.chaos_load import eclipse, overload
from bench.invariants import NODES, STORED, Broken, narrow
from meshnode.base.address import Addr
from meshnode.base.limits import GOSSIP_MAX_FUTURE_S
from meshnode.directory.names import Names, is_claim
from meshnode.directory.services import Announce
from meshnode.errors import RateLimited
from meshnode.gossip import Changed, Contact, Entry, Kind
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.kinds import parse_member
from meshnode.gossip.messages import Eager
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, sign_record
from tests.sim.gossip_sim import EPOCH, GossipNet, GossipNode
from tools.children import ended_together

TROUBLE_S, PEACE_S, STEP_S = 30.0, 90.0, 0.5
MOST_NODES = 18
SKEWS = (0.0, 0.0, -120.0, -20.0, 10.0, 60.0, 120.0)  # two of them are less than five minutes apart
FAR_SKEWS = (-600.0, 600.0)  # more than others forgive


class Chaos:
    """One seed's mesh and what happens to it."""

    def __init__(self, seed: int, *, log: bool = False) -> None:
        self.rng = random.Random(seed)
        self.log = log
        self.net = GossipNet(seed, loss=self.rng.choice((0.0, 0.01, 0.05)), strict=seed % 4 == 0)
        self.net.store_limit = STORED
        self.signed: dict[NodeId, dict[bytes, None]] = {}
        self.newest: dict[tuple[int, float], dict[Any, int]] = {}
        self.names: dict[tuple[int, float], Names] = {}
        self.pins: dict[tuple[int, float, str], NodeId | None] = {}
        self.past: list[bytes] = []
        self.goodbyes: list[bytes] = []
        self.liars: list[GossipNode] = []
        self.twins: list[GossipNode] = []
        self.amiss: dict[NodeId, None] = {}
        self._dubious: dict[NodeId, None] = {}  # keys of liars, and of twins: they may be cut off
        self.net.on_changed = self._changed

    # ---- what is watched

    def _changed(self, node: GossipNode, change: Changed) -> None:
        entry, wall = change.entry, self.net.wall(node)
        if change.via is None:
            self.signed.setdefault(entry.origin, {})[entry.id] = None
            self._keep(entry)
        elif entry.id not in self.signed.get(entry.origin, {}):
            raise Broken(f"node {node.number} took an entry that its origin did not sign")
        elif entry.expires < wall - 1 or max(entry.seq, entry.issued) > (wall + GOSSIP_MAX_FUTURE_S + 1) * 1000:
            raise Broken(f"node {node.number} took an entry that is over, or of the future")
        if not entry.fleeting:
            seqs = self.newest.setdefault((node.number, node.born), {})
            if entry.seq < seqs.get(entry.key, -1):
                raise Broken(f"node {node.number}: the seq of a key of kind {entry.kind} went back")
            seqs[entry.key] = entry.seq
        if entry.kind == Kind.NAME:
            self._names(node).on_entry(entry, wall)

    def _keep(self, entry: Entry) -> None:
        member = parse_member(entry) if entry.kind == Kind.MEMBER else None
        if member is not None and member.left:
            self.goodbyes = [*self.goodbyes[-19:], entry.encoded]
        if len(self.past) < 200:
            self.past.append(entry.encoded)
        else:
            self.past[self.rng.randrange(200)] = entry.encoded

    def _names(self, node: GossipNode) -> Names:
        """The names as a node's present life knows them."""
        life = node.number, node.born
        if life not in self.names:
            self.names[life] = Names(node.id, node.metrics, node.gossip.status)
            node.gossip.arrivals.ingest.checks[Kind.NAME] = is_claim
        return self.names[life]

    def _watch(self) -> None:
        for node in self.net.living():
            self._act(node)
            names, wall = self._names(node), self.net.wall(node)
            invariants.check_bounds(node, names)
            invariants.check_standing(node, self._dubious)
            for label in LABELS:
                life = node.number, node.born, label
                self.pins[life] = invariants.check_resolution(node, names, label, self.pins.get(life), wall)

    def _act(self, node: GossipNode) -> None:
        """Publish what a node's names want published."""
        for effect in self._names(node).take_effects():
            if isinstance(effect, Announce):
                try:
                    node.gossip.publish(effect.kind, effect.name, effect.value, effect.ttl, self.net.now)
                except RateLimited:
                    break
        self.net.pump(node)

    # ---- what happens

    def run(self) -> None:
        """Live through it. Raises Broken."""
        net, rng = self.net, self.rng
        for number in range(rng.randint(8, 14)):
            self._arrive(net.nodes[rng.randrange(number)] if number else None)
            net.run(0.1)
        net.run(2.0)
        end = net.now + TROUBLE_S
        while net.now < end:
            getattr(self, f"_{rng.choice(ACTIONS)}")()
            net.run(rng.uniform(0.2, 2.0) if rng.random() < 0.7 else 0.05)
            self._watch()
        self._end()
        until = net.now + PEACE_S
        while net.now < until and not self._settled():
            net.run(STEP_S)
            self._watch()
        self._judge()

    def _say(self, text: str) -> None:
        if self.log:
            print(f"{self.net.now:8.2f}  {text}")

    def _arrive(self, via: GossipNode | None) -> GossipNode:
        node = self.net.add()
        self._say(f"node {node.number} arrives")
        if via is not None:
            self.net.join(node, via)
        self._settle_in(node)
        return node

    def _settle_in(self, node: GossipNode) -> None:
        """Tell where the node is, and claim a name for it."""
        wall = self.net.wall(node)
        names = self._names(node)
        addr = Addr(f"10.0.{self.rng.randrange(256)}.{self.rng.randrange(256)}", 4_000)
        now_ms = int(wall * 1000)
        record = sign_record(node.identity, seq=now_ms, issued_ms=now_ms, ttl=3600, endpoints=(Endpoint(addr),))
        node.gossip.announce(record.encoded, self.net.now)
        if not names.own_name and self.rng.random() < 0.5:
            names.claim(self.rng.choice(LABELS), now_ms, self.net.now)
        self._act(node)

    def _some(self) -> GossipNode:
        return self.rng.choice([n for n in self.net.living() if n not in self.liars])

    def _join(self) -> None:
        if len(self.net.nodes) < MOST_NODES:
            self._arrive(self._some())

    def _crowd(self) -> None:
        """Many at once, through one node."""
        via = self._some()
        for _ in range(min(6, MOST_NODES - len(self.net.nodes))):
            self._arrive(via)

    def _move(self) -> None:
        """Another address: nothing comes through for a moment, then all hear where the node is."""
        node = self._some()
        self._say(f"node {node.number} moves")
        node.stalled_until = max(node.stalled_until, self.net.now + self.rng.uniform(0.0, 0.3))
        self._settle_in(node)

    def _publish(self) -> None:
        node = self._some()
        for _ in range(self.rng.choice((1, 1, 3, 10))):
            kind = self.rng.choice((Kind.SERVICE, Kind.SERVICE, 14, Kind.TOPIC))
            value = None if self.rng.random() < 0.2 else self.rng.randbytes(self.rng.randrange(200))
            ttl = 10 if self.rng.random() < 0.2 else 60 if kind >= 16 else 3600
            try:
                node.gossip.publish(kind, f"s{self.rng.randrange(6)}", value, ttl, self.net.now)
            except RateLimited:
                break
        self.net.pump(node)

    def _flood(self) -> None:
        node = self._some()
        self._say(f"node {node.number} floods")
        for number in range(250):
            try:
                node.gossip.publish(Kind.SERVICE, f"f{number}", b"flood", 3600, self.net.now)
            except RateLimited:
                break
        self.net.pump(node)

    def _crash(self) -> None:
        if len(self.net.living()) > 5:
            node = self._some()
            self._say(f"node {node.number} crashes")
            self.net.crash(node)

    def _leave(self) -> None:
        if len(self.net.living()) > 5:
            node = self._some()
            self._say(f"node {node.number} leaves")
            self.net.leave(node)

    def _restart(self) -> None:
        node = self.rng.choice(self.net.nodes)
        others = [n for n in self.net.living() if n is not node]
        if node in self.liars or not others or (node.alive and node.gossip.own_entries.left):
            return
        self._restart_with(node, self.rng.choice(SKEWS), self.rng.choice(others))

    def _wrong(self) -> None:
        """A clock that is further off than others forgive: that node is on its own, and harms no other node."""
        if len(self.net.living()) > 7 and sum(self._is_far(n) for n in self.net.living()) < 2:
            node = self._some()
            others = [n for n in self.net.living() if n is not node]
            self._restart_with(node, self.rng.choice(FAR_SKEWS), self.rng.choice(others))

    def _restart_with(self, node: GossipNode, skew: float, via: GossipNode) -> None:
        """A restart, perhaps without memory, and the clock may be wrong now, also behind what it was."""
        memory = self.rng.random() < 0.5
        if skew < node.skew and not memory:
            self.amiss[node.id] = None
        node.skew = skew
        self._say(f"node {node.number} restarts, clock {skew:+.0f} s, {'with' if memory else 'without'} memory")
        self.net.restart(node, via, seq=node.gossip.own_entries.seq + 1 if memory else 0)
        self._settle_in(node)

    def _is_far(self, node: GossipNode) -> bool:
        """Its clock is too wrong for others, or was, and its seqs are still of that time."""
        latest = EPOCH + self.net.now + GOSSIP_MAX_FUTURE_S + min(SKEWS)
        return node.skew in FAR_SKEWS or node.gossip.own_entries.seq > latest * 1000

    def _partition(self) -> None:
        living = self.net.living()
        half = self.rng.sample(living, self.rng.randint(1, len(living) - 1))
        self._say(f"cut off: {[node.number for node in half]}")
        self.net.partition(half)

    def _heal(self) -> None:
        if self.net.side:
            self._say("healed")
        self.net.heal()

    def _weather(self) -> None:
        self.net.loss = self.rng.choice((0.0, 0.01, 0.05, 0.1))
        self.net.delay = self.rng.choice((0.001, 0.02, 0.05, 0.15))
        self.net.jitter = self.rng.choice((0.0, 0.02))
        self._say(f"loss {self.net.loss}, delay {self.net.delay}, jitter {self.net.jitter}")

    def _stall(self) -> None:
        node = self._some()
        self._say(f"node {node.number} gets no CPU")
        node.stalled_until = self.net.now + self.rng.uniform(0.5, 5.0)

    def _overload(self) -> None:
        self._say("too little CPU for all")
        overload(self.net, self.rng, [n for n in self.net.living() if n not in self.liars])

    def _eclipse(self) -> None:
        victim, room = self._some(), MOST_NODES - len(self.net.nodes)
        if room > 0 and len(self.net.living()) > 5:
            self._say(f"a crowd surrounds node {victim.number}")
            eclipse(self.net, victim, room, self._arrive)

    def _twin(self) -> None:
        """A second node runs with a key that is in use: two values under one seq, told to different nodes."""
        node, kind, name = self._some(), Kind.SERVICE, f"s{self.rng.randrange(6)}"
        self.amiss[node.id] = None
        known = node.gossip.store.get((node.id, kind, name))
        seq = known.seq if known is not None else int(self.net.wall(node) * 1000)
        self._say(f"a twin of node {node.number} speaks")
        for _ in range(2):
            entry = self.sign(node.identity, kind, name, seq, self.rng.randbytes(8))
            self._hand(self._some(), entry.encoded)

    def _double(self) -> None:
        """A whole second node runs with a key that is in use, from now to the end of the trouble."""
        node, via = self._some(), self._some()
        if len(self.twins) < 2 and len(self.net.nodes) < NODES and node is not via and via.id != node.id:
            twin = self.net.add(node.identity, skew=node.skew)
            self._say(f"node {twin.number} runs with the key of node {node.number}")
            self.twins.append(twin)
            self._dubious[node.id] = None
            self.amiss[node.id] = None
            self.net.join(twin, via)
            self._settle_in(twin)

    def sign(
        self, signer: Identity, kind: int, name: str, seq: int, value: bytes, *, ahead_ms: int = 0, ttl: int = 3600
    ) -> Entry:
        """Sign an entry, and remember that its origin did."""
        issued = int((EPOCH + self.net.now) * 1000) + ahead_ms
        entry = sign_entry(signer, kind=kind, name=name, seq=seq, issued_ms=issued, ttl=ttl, value=value)
        self.signed.setdefault(signer.id, {})[entry.id] = None
        return entry

    def _hand(self, node: GossipNode, payload: bytes) -> None:
        """As if one of the node's neighbours passed it on."""
        peers = list(node.gossip.hyparview.active)
        if peers:
            node.gossip.on_message(self.rng.choice(peers), Eager(b"", ((3, payload),)), self.net.now)
            self.net.pump(node)

    def _liar(self) -> None:
        if len(self.liars) < 2 and len(self.net.living()) > 7:
            liar = self._some()
            if any(twin.id == liar.id for twin in self.twins):
                return
            self._say(f"node {liar.number} lies from now on")
            self.liars.append(liar)
            self._dubious[liar.id] = self.amiss[liar.id] = None
            liar.liar = partial(lies, self)

    # ---- the end

    def _end(self) -> None:
        self._say("peace")
        net = self.net
        for node in (*self.liars, *self.twins):
            if node.alive:
                net.crash(node)
                net.unlink_all(node)
        net.heal()
        net.loss, net.delay, net.jitter = 0.01, 0.05, 0.0
        for node in net.nodes:
            node.stalled_until = min(node.stalled_until, net.now)
        for node in net.living():
            if node.gossip.own_entries.left:
                net.crash(node)
        seed = next((node for node in net.living() if not self._is_far(node)), net.living()[0])
        for node in net.living():  # all have a seed that is there: a node that knew only dead ones would stay apart
            if node is not seed:
                node.contacts = [seed]
                node.gossip.add_seed(Contact(seed.id), net.now)
                net.pump(node)

    def _settled(self) -> bool:
        try:
            self._judge()
        except Broken:
            return False
        return True

    def _judge(self) -> None:
        near = [node for node in self.net.living() if not self._is_far(node)]
        if near:
            invariants.check_agreement(self.net, near, self.amiss)


ACTIONS = (
    *("publish", "publish", "move", "crash", "restart", "partition", "heal", "weather", "stall", "twin"),
    *("join", "leave", "liar", "heal", "publish", "flood", "crowd", "double", "wrong"),
    *("overload", "eclipse"),
)


def one(seed: int, log: bool = False) -> tuple[int, str]:
    """Run one seed; what broke, or ''."""
    chaos = Chaos(seed, log=log)
    try:
        with narrow():
            chaos.run()
    except Exception as error:  # an invariant, or an exception that escaped a core: both are what we look for
        if log:
            raise
        return seed, f"{type(error).__name__}: {error} (at {chaos.net.now:.2f} s)"
    return seed, ""


def main() -> int:
    """Run seeds; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="./dev chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one only, and say what happens")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one object")
    options = parser.parse_args()
    if options.seed is not None:
        print(one(options.seed, log=True)[1] or "all invariants hold")
        return 0
    began, failed = time.monotonic(), 0
    with multiprocessing.Pool(options.jobs, initializer=gc.freeze) as pool:
        seeds = range(options.first, options.first + options.seeds)
        for number, (seed, what) in enumerate(pool.imap_unordered(one, seeds), 1):
            if what:
                failed += 1
                print(f"seed {seed}: {what}; repeat with: ./dev chaos --seed {seed}", flush=True)
            if number % 100 == 0 and not options.json:
                print(f"{number} of {options.seeds}, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    result = {"seeds": options.seeds, "failed": failed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result) if options.json else f"{options.seeds} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    with ended_together():
        sys.exit(main())
