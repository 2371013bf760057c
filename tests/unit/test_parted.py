"""Neighbours that have parted: they had no room a moment ago."""

from __future__ import annotations

import random

from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.effects import Connect, NeedContacts
from meshnode.gossip.membership.hyparview import HyParView
from meshnode.gossip.messages import Contact, Disconnect, Neighbour
from tests.unit.test_hyparview import _id


def test_one_that_has_parted_is_asked_again_only_after_all_others() -> None:
    timers = Timers()
    views = HyParView(_id(0), random.Random(1), timers, Metrics(), lambda: b"", list, 0.0)
    views.on_link(_id(1), 0.0)
    views.on_neighbour(_id(1), Neighbour(True, b""), 0.0)
    views.on_disconnect(_id(1), Disconnect(False), 1.0)
    views.take_effects()
    timers.run(1.5)
    assert NeedContacts() in views.take_effects(), "it has no room, and all others of a crowd ask it too"
    for number in (2, 3):
        views.add_contact(Contact(_id(number)), 2.0)
    timers.run(2.5)
    asked = [effect.contact.id for effect in views.take_effects() if isinstance(effect, Connect)]
    assert set(asked) == {_id(2), _id(3)}
