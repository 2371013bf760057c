"""What a node remembers of keys that have replaced others: restored, bounded, and shared by what let the keys in."""

from __future__ import annotations

from meshnode.base.limits import MAX_SUCCESSORS
from meshnode.base.wire import encode
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.runtime.grant_store import _parse_successions
from meshnode.trust.grant import Grant
from meshnode.trust.succession import sign_succession
from meshnode.trust.successors import Share, Successors
from tests.sim.test_grants import MS
from tests.sim.test_succession import DAY, NEW, OLD, OTHER, _link, _succession

OTHERS, CROWD = ("grant of a delegate", ""), ("grant of a ticket", "")


def _saved(found: Successors) -> list[tuple[bytes, Share]]:
    data = encode(found.saved())
    return _parse_successions(data)


def _crowd(found: Successors, share: Share, first: int = 1) -> list[Grant]:
    """Have as many keys as there are places replaced by others."""
    keys = [NodeId((2 * first + n).to_bytes(32, "big")) for n in range(2 * MAX_SUCCESSORS)]
    links = [
        Grant(old, new, (), None, MS, MS, None, bytes(old)[-3:]) for old, new in zip(keys[::2], keys[1::2], strict=True)
    ]
    for link in links:
        found.note(link, share)
    return links


def test_keys_that_came_by_one_ticket_push_out_no_succession_of_others() -> None:
    found = Successors()
    assert found.note(_link(), OTHERS)
    links = _crowd(found, CROWD)
    assert len(found.said) == MAX_SUCCESSORS
    assert found.of(OLD.id) == NEW.id
    assert found.of(links[0].issuer) == links[0].subject, "of a share the newest goes"
    assert found.formers(links[-1].subject) == [], "and nothing more is kept of it"
    late = _link(Identity(b"l" * 32), Identity(b"m" * 32))
    assert found.note(late, OTHERS), "others find a place at any time"
    assert len(found.said) == MAX_SUCCESSORS
    again = Successors()
    again.restore([(bytes(32), OTHERS), *_saved(found)])
    assert again.said == [encoded for encoded in found.said if len(encoded) > 3], "what both have signed"
    assert not found.note(_link(Identity(b"n" * 32), Identity(b"o" * 32)), CROWD)


def test_the_tickets_of_one_renewer_share_its_places() -> None:
    found = Successors()
    assert found.note(_link(), ("renewer", "ticket"))
    _crowd(found, ("renewer", "ticket of a crowd"))
    assert found.of(OLD.id) == NEW.id
    _crowd(found, CROWD, first=10 * MAX_SUCCESSORS)
    assert found.of(OLD.id) == NEW.id, "the largest share of the largest"


def test_a_dispute_is_noted_though_all_places_are_taken() -> None:
    found = Successors()
    _crowd(found, CROWD)
    assert found.note(_link(), OTHERS)
    assert found.note(_link(OLD, OTHER), CROWD)
    assert found.is_disputed(OLD.id)
    assert found.disputed() == [OLD.id]


def test_successions_are_known_after_a_restart_and_forged_ones_are_not() -> None:
    one, saves = Successors(), []
    one.on_said = lambda: saves.append(list(one.said))
    one.note(_link(), OTHERS)
    one.note(_link(), OTHERS)
    assert saves == [[_succession()]], "it is written once"
    thief = Identity(b"t" * 32)
    forged = sign_succession(thief, OTHER, time=MS, ends=MS + DAY).replace(bytes(thief.id), bytes(OTHER.id))
    after = Successors()
    followed: list[tuple[object, object]] = []
    after.on_new.append(lambda old, new: followed.append((old, new)))
    after.restore([(encoded, OTHERS) for encoded in (b"", forged, *one.said)])
    assert (after.of(OLD.id), after.of(OTHER.id)) == (NEW.id, OTHER.id)
    assert followed == [(OLD.id, NEW.id)]
    one.note(_link(OLD, OTHER), CROWD)
    again = Successors()
    again.restore(_saved(one))
    assert again.is_disputed(OLD.id), "nor is a dispute forgotten"
    assert again.saved() == one.saved()
    assert _parse_successions(encode([b"one"])) == [(b"one", ("", ""))], "as they were saved without shares"


def test_a_key_that_signs_for_ever_new_old_keys_has_one_place_and_pushes_out_no_dispute() -> None:
    found = Successors()
    found.note(_link(), OTHERS)
    assert found.note(_link(OLD, OTHER), OTHERS)
    liar = Identity(b"l" * 32)
    for n in range(MAX_SUCCESSORS):
        old = NodeId(n.to_bytes(32, "big"))
        found.note(Grant(old, liar.id, (), None, MS, MS, None, b""), OTHERS)
    assert len(found.said) == 3
    assert found.is_disputed(OLD.id)
