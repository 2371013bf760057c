"""The set of all revocations that a node knows: what they mean for grants, and how two nodes compare their sets.

The set is a function of what was put in, not of the order: of each issuer and target one statement counts, and where
there are too many the highest of an order that all nodes share stay. The authority's have places of their own, which no
other key can take; the others' are shared by the first grant of their issuers' chains, so what one invitation lets in
cannot push out another's. Nor does one key by many statements push out the first ones of others: the second of each key
goes before the first of any, and what a key says of itself is its first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from meshnode.base.limits import MAX_OTHER_REVOCATIONS, MAX_REVOCATIONS, MAX_REVOCATIONS_SHARE
from meshnode.identity.node_id import NodeId
from meshnode.trust.chain import SKEW_MS
from meshnode.trust.grant import Grant, open_grant
from meshnode.trust.revocation import Revocation, dht_key_of
from meshnode.trust.succession import open_links, without_succession

BUCKETS = 16  # by the first four bits of the names
DAY_MS = 86_400_000
PRINT_LENGTH = 8
PRINTS_LENGTH = BUCKETS * PRINT_LENGTH

Key = tuple[NodeId, bytes, str]  # issuer, target, share
Counts = dict[bytes, int]


class Revocations:
    """The revocations of one mesh. Those that are put in were verified (``open_revocation``)."""

    def __init__(self, authority: NodeId) -> None:
        self.dropped = 0  # that had no place any more
        self._authority = authority
        self._held: dict[Key, Revocation] = {}
        self._names: list[dict[bytes, Revocation]] = [{} for _ in range(BUCKETS)]
        self._prints: list[bytes | None] = [None] * BUCKETS
        self._targets: dict[bytes, dict[bytes, Revocation]] = {}  # by the target's key in the DHT, and the name
        self._all: Counts = {}  # what the authority revoked, and keys that revoked themselves
        self._below: dict[NodeId, Counts] = {}  # what delegates revoked

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(sorted(self._held.values(), key=_rank))

    # ---- what they mean

    def covers(self, grants: Sequence[Grant]) -> bool:
        """Return whether one of a chain's grants, or of the keys in it, is revoked for it.

        What a delegate revokes counts behind a grant that it made, and nowhere else.
        """
        revoked = self._all
        if not revoked and not self._below:
            return False
        for at, grant in enumerate(grants):
            if bytes(grant.issuer) in revoked or _rests_on(grant, revoked):
                return True
            below = self._below.get(grant.issuer)
            if below and any(_rests_on(later, below) for later in grants[at:]):
                return True
        return False

    def has(self, target: NodeId | bytes) -> bool:
        """Return whether a key, or a grant by its id, is revoked whatever is shown: by the authority, or by itself."""
        return bytes(target) in self._all

    # ---- putting in

    def add(self, new: Revocation, wall: float) -> bool:
        """Put a verified statement in; False when it changes nothing: it is known, or there is no place for it."""
        if new.ends + SKEW_MS < wall * 1000:
            return False
        key = self._key(new)
        before = self._held.get(key)
        if before is not None:
            if _rank(new) <= _rank(before):
                return False
            self._remove(before)
        self._put(new)
        self._make_room(key[2])
        return self._held.get(key) is new

    def knows(self, name: bytes) -> bool:
        """Return whether a statement is held."""
        return name in self._names[bucket_of(name)]

    def of_target(self, key: bytes, most: int) -> Revocation | None:
        """Return what is said of the target with this key in the DHT, of at most so many bytes; None without any.

        The word that counts everywhere, before one of a delegate.
        """
        fits = [each for each in self._targets.get(key, {}).values() if len(each.encoded) <= most]
        return max(fits, key=lambda each: (self._counts(each) is self._all, _rank(each)), default=None)

    def named(self, name: bytes) -> Revocation | None:
        """Return the statement of that name, if it is held."""
        return self._names[bucket_of(name)].get(name)

    def expire(self, wall: float) -> None:
        """Forget what can hit no grant any more."""
        for each in [each for each in self._held.values() if each.ends + SKEW_MS < wall * 1000]:
            self._remove(each)

    def _key(self, each: Revocation) -> Key:
        return each.issuer, each.target, "" if each.issuer == self._authority else open_grant(each.chain[0]).id

    def _counts(self, each: Revocation) -> Counts:
        """Return where the target counts: everywhere, or below the issuer."""
        if each.issuer == self._authority or each.of_itself:
            return self._all
        return self._below.setdefault(each.issuer, {})

    def _put(self, new: Revocation) -> None:
        self._held[self._key(new)] = new
        bucket = bucket_of(new.name)
        self._names[bucket][new.name] = new
        self._prints[bucket] = None
        self._targets.setdefault(dht_key_of(new.target), {})[new.name] = new
        counts = self._counts(new)
        counts[new.target] = counts.get(new.target, 0) + 1

    def _remove(self, old: Revocation) -> None:
        del self._held[self._key(old)]
        bucket = bucket_of(old.name)
        del self._names[bucket][old.name]
        self._prints[bucket] = None
        named = self._targets[key := dht_key_of(old.target)]
        del named[old.name]
        if not named:
            del self._targets[key]
        counts = self._counts(old)
        counts[old.target] -= 1
        if not counts[old.target]:
            del counts[old.target]
        if not counts and counts is not self._all:
            del self._below[old.issuer]

    def _make_room(self, share: str) -> None:
        if not share:
            self._trim([each for each in self._held.values() if each.issuer == self._authority], MAX_REVOCATIONS)
            return
        self._trim([each for key, each in self._held.items() if key[2] == share], MAX_REVOCATIONS_SHARE)
        self._trim([each for key, each in self._held.items() if key[2]], MAX_OTHER_REVOCATIONS)

    def _trim(self, places: list[Revocation], most: int) -> None:
        if len(places) > most:
            for each in self._first_to_go(places)[: len(places) - most]:
                self._remove(each)
                self.dropped += 1

    def _first_to_go(self, places: list[Revocation]) -> list[Revocation]:
        """Return statements in the order in which they give way: first the last ones of the keys that said most."""
        counts: Counter[tuple[NodeId, str]] = Counter()
        place: dict[bytes, int] = {}  # of a statement, among those that its issuer shows by the same first grant
        for each in sorted(places, key=_rank, reverse=True):
            issuer, _, share = self._key(each)
            place[each.name] = counts[issuer, share]
            counts[issuer, share] += 1
        return sorted(places, key=lambda each: (-place[each.name], _rank(each)))

    # ---- comparing with another node's

    def prints(self) -> bytes:
        """Return 16 hashes, each of the names in one bucket: equal where the sets are."""
        for bucket, found in enumerate(self._prints):
            if found is None:
                names = b"".join(sorted(self._names[bucket]))
                self._prints[bucket] = hashlib.blake2b(names, digest_size=PRINT_LENGTH, person=b"mesh-revoked").digest()
        return b"".join(found for found in self._prints if found is not None)

    def names(self, bucket: int) -> list[bytes]:
        """Return the names in a bucket, sorted."""
        return sorted(self._names[bucket])

    def others(self, bucket: int, names: Iterable[bytes]) -> list[bytes]:
        """Return the encoded statements of a bucket that are not among ``names``, in the order of their names."""
        known = set(names)
        return [found.encoded for name, found in sorted(self._names[bucket].items()) if name not in known]


def bucket_of(name: bytes) -> int:
    """Return the bucket of a statement."""
    return name[0] >> 4


def differing(ours: bytes, theirs: bytes) -> list[int]:
    """Return the buckets in which two sets differ, by their ``prints``."""
    parts = range(0, PRINTS_LENGTH, PRINT_LENGTH)
    return [n for n, at in enumerate(parts) if ours[at : at + PRINT_LENGTH] != theirs[at : at + PRINT_LENGTH]]


def _rank(each: Revocation) -> tuple[bool, int, int, bytes]:
    """Return what orders statements at a bound: of keys about themselves those stay first, then what ends last.

    Others than the authority count as ending with the grants that they show, and their dates by the day: a key that
    says the same again, a millisecond later each time, would have all nodes take it and pass it on without end. Of what
    ends together the newest stays.
    """
    if not each.chain:
        return False, each.ends, each.time, each.name
    ends = min(each.ends, open_links(without_succession(each.chain))[-1].expires)
    return each.of_itself, ends // DAY_MS, each.time // DAY_MS, each.name


def _rests_on(grant: Grant, revoked: Counts) -> bool:
    """Return whether a grant, its subject, or what it says that it rests on is among what was revoked."""
    if bytes(grant.subject) in revoked or bytes.fromhex(grant.id) in revoked:
        return True
    return any(each in revoked for each in grant.lineage)
