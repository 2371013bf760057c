"""Places for leaves: a crowd takes none of those that others have, and keeps no other network out."""

from __future__ import annotations

from meshnode.base.limits import GOSSIP_MAX_LEAVES
from meshnode.gossip.effects import NeighbourDown, NeighbourUp, Send
from meshnode.gossip.membership.leaves import Leaves
from meshnode.gossip.messages import Disconnect, NeighbourReply
from meshnode.identity.node_id import NodeId


def peer(network: int, number: int) -> NodeId:
    return NodeId(bytes([network]) + number.to_bytes(31, "big"))


def table(*, own: bool = False) -> Leaves:
    return Leaves(3, lambda node: True, lambda node: node.raw[0], own)


def test_a_crowd_from_one_network_takes_the_place_of_no_leaf_and_keeps_none_out() -> None:
    leaves = table()
    early, late = peer(1, 0), peer(2, 0)
    leaves.answer(early, stopped=False)
    for number in range(2 * GOSSIP_MAX_LEAVES):
        effects = leaves.answer(peer(9, number), stopped=False)
    assert effects == [Send(peer(9, number), NeighbourReply(False))]
    assert len(leaves) == GOSSIP_MAX_LEAVES
    effects = leaves.answer(late, stopped=False)
    assert early in leaves
    assert late in leaves
    assert len(leaves) == GOSSIP_MAX_LEAVES
    gone = peer(9, GOSSIP_MAX_LEAVES - 2)
    assert gone not in leaves, "the newest of the crowd"
    assert effects[:2] == [Send(gone, Disconnect(False)), NeighbourDown(gone)]
    assert isinstance(effects[-1], NeighbourUp)


def test_a_place_that_is_taken_back_is_free_again() -> None:
    leaves = table()
    for number in range(GOSSIP_MAX_LEAVES):
        leaves.answer(peer(9, number), stopped=False)
    assert leaves.part(peer(9, 0))
    assert not leaves.part(peer(9, 0))
    leaves.answer(peer(9, 999), stopped=False)
    assert peer(9, 999) in leaves


def test_a_leaf_and_a_node_that_leaves_give_no_place() -> None:
    for leaves, stopped in ((table(own=True), False), (table(), True)):
        assert leaves.answer(peer(1, 1), stopped=stopped) == [Send(peer(1, 1), NeighbourReply(False))]
        assert len(leaves) == 0
