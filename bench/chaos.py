"""``./dev chaos --seeds N``: small gossip meshes under everything at once, and what must hold all the same.

Each seed is one mesh of 12 to 20 cores that for 40 s of virtual time moves, crashes, restarts, leaves, is cut in two,
loses, delays, stalls, has its keys used twice, and has liars among it. Then all that ends, and 45 s later:

- no entry counts anywhere that its origin did not sign; at no node has the seq of a key gone back;
- every view, queue and store kept its bound, at every step;
- the views of those that live form one graph, their stores are the same, and none of them is taken for gone.

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
from collections.abc import Iterable
from typing import Any

from meshnode.errors import RateLimited
from meshnode.gossip import Changed, Contact, Entry, Kind, Message, Status
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.kinds import Accusation, Member
from meshnode.gossip.messages import (
    Disconnect,
    Eager,
    Entries,
    ForwardJoin,
    IHave,
    Join,
    ProbeTell,
    ShuffleReply,
    SyncTell,
)
from meshnode.identity import Identity, NodeId
from meshnode.limits import (
    GOSSIP_MAX_ACTIVE,
    GOSSIP_MAX_LOST,
    GOSSIP_MAX_MISSING,
    GOSSIP_MAX_PASSIVE,
    GOSSIP_MAX_PENDING,
    GOSSIP_MAX_PER_ORIGIN,
    GOSSIP_MAX_PROBES,
    GOSSIP_MAX_RECENT,
    GOSSIP_MAX_SEEN,
    GOSSIP_MAX_WALKS,
)
from tests.sim.gossip_sim import EPOCH, GossipNet, GossipNode

TROUBLE_S, PEACE_S, STEP_S = 40.0, 45.0, 0.5


class Broken(AssertionError):
    """An invariant does not hold."""


class Chaos:
    """One seed's mesh and what happens to it."""

    def __init__(self, seed: int, *, log: bool = False) -> None:
        self.rng = random.Random(seed)
        self.log = log
        self.net = GossipNet(seed, loss=self.rng.choice((0.0, 0.01, 0.05)), strict=seed % 4 == 0)
        self.signed: dict[NodeId, dict[bytes, None]] = {}
        self.newest: dict[tuple[int, float], dict[Any, int]] = {}
        self.past: list[bytes] = []
        self.liars: list[GossipNode] = []
        self.net.on_changed = self._changed

    # ---- what is watched

    def _changed(self, node: GossipNode, change: Changed) -> None:
        entry = change.entry
        if change.via is None:
            self.signed.setdefault(entry.origin, {})[entry.id] = None
            self._keep(entry)
        elif entry.id not in self.signed.get(entry.origin, {}):
            raise Broken(f"node {node.number} took an entry that its origin did not sign")
        # a refuted accusation leaves no seq behind: a restarted accuser whose clock is slow may count anew
        if not entry.fleeting and entry.kind != Kind.ACCUSATION:
            seqs = self.newest.setdefault((node.number, node.born), {})
            if entry.seq < seqs.get(entry.key, -1):
                raise Broken(f"node {node.number}: the seq of a key went back")
            seqs[entry.key] = entry.seq

    def _keep(self, entry: Entry) -> None:
        if len(self.past) < 200:
            self.past.append(entry.encoded)
        else:
            self.past[self.rng.randrange(200)] = entry.encoded

    def _bounds(self) -> None:
        for node in self.net.living():
            gossip = node.gossip
            views, tree, store = gossip.views, gossip.broadcast, gossip.store
            per_origin = max((len(keys) for keys in store._of_origin.values()), default=0)
            for what, size, most in (
                ("active view", len(views.active), GOSSIP_MAX_ACTIVE),
                ("passive view", len(views.passive), GOSSIP_MAX_PASSIVE),
                ("lost", len(views.lost), GOSSIP_MAX_LOST),
                ("pending", len(views._pending), GOSSIP_MAX_PENDING),
                ("walks", len(views._walks), GOSSIP_MAX_WALKS),
                ("missing", len(tree._missing), GOSSIP_MAX_MISSING),
                ("due", len(tree._due), GOSSIP_MAX_MISSING),
                ("seen", len(tree._seen), GOSSIP_MAX_SEEN),
                ("recent", tree._recent_size, GOSSIP_MAX_RECENT),
                ("probes", len(gossip.detector._probing), GOSSIP_MAX_PROBES),
                ("entries of an origin", per_origin, GOSSIP_MAX_PER_ORIGIN),
                ("links", len(node.links), len(self.net.nodes)),
            ):
                if size > most:
                    raise Broken(f"node {node.number}: {what} {size} > {most}")
            trees = {*tree.eager, *tree.lazy}
            if trees != set(views.active):
                raise Broken(f"node {node.number}: the tree's links are not the active view")

    # ---- what happens

    def run(self) -> None:
        """Live through it. Raises Broken."""
        net, rng = self.net, self.rng
        for number in range(rng.randint(12, 20)):
            self._arrive(net.nodes[rng.randrange(number)] if number else None)
            net.run(0.1)
        net.run(2.0)
        end = net.now + TROUBLE_S
        while net.now < end:
            getattr(self, f"_{rng.choice(ACTIONS)}")()
            net.run(rng.uniform(0.2, 2.0) if rng.random() < 0.7 else 0.05)
            self._bounds()
        self._end()
        until = net.now + PEACE_S
        while net.now < until and not self._settled():
            net.run(STEP_S)
            self._bounds()
        self._judge()

    def _say(self, text: str) -> None:
        if self.log:
            print(f"{self.net.now:8.2f}  {text}")

    def _arrive(self, via: GossipNode | None) -> None:
        node = self.net.add()
        self._say(f"node {node.number} arrives")
        if via is not None:
            self.net.join(node, via)
        self.net.announce(node)
        self.net.unfollow()

    def _some(self) -> GossipNode:
        return self.rng.choice([n for n in self.net.living() if n not in self.liars])

    def _join(self) -> None:
        if len(self.net.nodes) < 24:
            self._arrive(self._some())

    def _move(self) -> None:
        node = self._some()
        self._say(f"node {node.number} moves")
        node.gossip.announce(b"", self.net.now)
        self.net.pump(node)

    def _publish(self) -> None:
        node = self._some()
        for _ in range(self.rng.choice((1, 1, 3, 10))):
            kind = self.rng.choice((Kind.SERVICE, Kind.SERVICE, Kind.NAME, 14, Kind.TOPIC))
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
        if len(self.net.living()) > 6:
            node = self._some()
            self._say(f"node {node.number} crashes")
            self.net.crash(node)

    def _leave(self) -> None:
        if len(self.net.living()) > 6:
            node = self._some()
            self._say(f"node {node.number} leaves")
            self.net.leave(node)

    def _restart(self) -> None:
        node = self.rng.choice(self.net.nodes)
        others = [n for n in self.net.living() if n is not node]
        if node in self.liars or not others or node.gossip._left:
            return
        node.skew = self.rng.choice((0.0, 0.0, -20.0, 10.0))  # its clock may be wrong now, also behind what it was
        self._say(f"node {node.number} restarts, clock {node.skew:+.0f} s")
        self.net.restart(node, self.rng.choice(others))
        self.net.announce(node)
        self.net.unfollow()

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

    def _twin(self) -> None:
        """Somebody runs with a key that is in use: two values under one seq, told to different nodes."""
        node, kind, name = self._some(), Kind.SERVICE, f"s{self.rng.randrange(6)}"
        known = node.gossip.get((node.id, kind, name))
        seq = known.seq if known is not None else int(self.net.wall(node) * 1000)
        self._say(f"a twin of node {node.number} speaks")
        for _ in range(2):
            entry = self._sign(node.identity, kind, name, seq, self.rng.randbytes(8))
            self._hand(self._some(), entry.encoded)

    def _sign(self, who: Identity, kind: int, name: str, seq: int, value: bytes, ahead_ms: int = 0) -> Entry:
        issued = int((EPOCH + self.net.now) * 1000) + ahead_ms
        entry = sign_entry(who, kind=kind, name=name, seq=seq, issued_ms=issued, ttl=3600, value=value)
        if not ahead_ms:
            self.signed.setdefault(who.id, {})[entry.id] = None
        return entry

    def _hand(self, node: GossipNode, payload: bytes) -> None:
        """As if one of the node's neighbours passed it on."""
        peers = node.gossip.neighbours
        if peers:
            node.gossip.on_message(self.rng.choice(peers), Eager(b"", ((3, payload),)), self.net.now)
            self.net.pump(node)

    def _liar(self) -> None:
        if len(self.liars) < 2 and len(self.net.living()) > 8:
            liar = self._some()
            self._say(f"node {liar.number} lies from now on")
            self.liars.append(liar)
            liar.liar = self._lies

    def _lies(self, liar: GossipNode, message: Message) -> Iterable[Message]:
        """What a liar sends instead of, or beside, what it should."""
        rng, net = self.rng, self.net
        if rng.random() < 0.7:
            return [message]
        other = rng.choice(net.nodes)
        now_ms = int((EPOCH + net.now) * 1000)
        match rng.randrange(13):
            case 0:
                return []
            case 1:
                return [message, message]
            case 2:
                return [Eager(b"", ((0, rng.randbytes(rng.choice((10, 100, 5000)))),))]
            case 3:  # in another's name
                forged = self._sign(liar.identity, Kind.SERVICE, "s1", now_ms, b"forged").encoded
                return [Eager(b"", ((0, forged.replace(bytes(liar.id), bytes(other.id))),))]
            case 4:  # from the future
                future = self._sign(liar.identity, Kind.SERVICE, "s2", now_ms + 10**7, b"soon", 10**7)
                return [Eager(b"", ((0, future.encoded),))]
            case 5 if self.past:  # what is long superseded: old goodbyes too
                return [Eager(b"", tuple((0, rng.choice(self.past)) for _ in range(5)))]
            case 6 if other is not liar:
                value = Accusation(other.id, rng.choice((0, now_ms, 2**53))).encoded()
                accusation = self._sign(liar.identity, Kind.ACCUSATION, str(other.id), now_ms, value)
                return [Eager(b"", ((0, accusation.encoded),)), message]
            case 7:
                return [IHave(b"", tuple((0, rng.randbytes(8)) for _ in range(50))), message]
            case 8:
                contacts = tuple(Contact(rng.choice(net.nodes).id) for _ in range(8))
                return [ShuffleReply(rng.randrange(2**32), contacts), ForwardJoin(Contact(other.id), 6), message]
            case 9:
                return [ProbeTell(rng.randrange(2**32), True), Disconnect(rng.random() < 0.5), Join(b"")]
            case 11:
                flood = [self._sign(liar.identity, Kind.SERVICE, f"l{i}", now_ms + i, b"flood") for i in range(150)]
                return [Eager(b"", tuple((0, entry.encoded) for entry in flood))]
            case 10:
                return [SyncTell(1, False, ((0, tuple(rng.randbytes(8) for _ in range(20))),)), message]
            case _:
                junk = self._sign(liar.identity, Kind.MEMBER, "", now_ms, Member(True, b"").encoded())
                return [Entries(True, (rng.randbytes(80), junk.encoded.replace(bytes(liar.id), bytes(other.id))))]

    # ---- the end

    def _end(self) -> None:
        self._say("peace")
        net = self.net
        for liar in self.liars:
            if liar.alive:
                net.crash(liar)
        net.heal()
        net.loss, net.delay, net.jitter = 0.01, 0.05, 0.0
        for node in net.nodes:
            node.stalled_until = min(node.stalled_until, net.now)
        for node in net.living():
            if node.gossip._left:
                net.crash(node)
        seed = net.living()[0]
        for node in net.living():  # all have a seed that is there: who only knew the dead would stay apart
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
        net, living = self.net, self.net.living()
        if len(living) < 2:
            return
        if not net.is_connected():
            raise Broken("the views of those that live are not connected")
        prints = living[0].gossip.store.prints
        for node in living:
            for other in living:
                status = node.gossip.status(other.id)
                if other is not node and status is not Status.ALIVE:
                    raise Broken(f"node {node.number} takes node {other.number}, which lives, for {status.value}")
            if node.gossip.store.prints != prints:
                raise Broken(f"nodes {living[0].number} and {node.number} do not store the same")


ACTIONS = (
    *("publish", "publish", "move", "crash", "restart", "partition", "heal", "weather", "stall", "twin"),
    *("join", "leave", "liar", "heal", "publish", "flood"),
)


def one(seed: int, log: bool = False) -> tuple[int, str]:
    """Run one seed; what broke, or ''."""
    chaos = Chaos(seed, log=log)
    try:
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
    sys.exit(main())
