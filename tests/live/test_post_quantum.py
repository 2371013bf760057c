"""The setting ``post_quantum`` on live nodes: what is negotiated is visible, and what is required is held to."""

from __future__ import annotations

import pytest

from meshnode.errors import ConnectionLost
from tests.conftest import MakeNode


@pytest.mark.parametrize(
    ("here", "there", "group"),
    [("on", "on", "X25519MLKEM768"), ("on", False, "X25519"), ("required", "on", "X25519MLKEM768")],
)
async def test_both_ends_see_what_was_negotiated(make_node: MakeNode, here: str, there: str, group: str) -> None:
    seed = await make_node(post_quantum=there)
    node = await make_node(seed=seed, post_quantum=here)
    connection = await node.connect(seed.id)
    assert connection.key_exchange == group
    for one, other in ((node, seed), (seed, node)):
        rows = {peer["id"]: peer["key_exchange"] for peer in one.peers()}
        assert rows == {str(other.id): group}
    assert node.status()["post_quantum"] == here


async def test_a_node_that_requires_it_says_so_to_one_that_has_it_off(make_node: MakeNode) -> None:
    seed = await make_node(post_quantum="required")
    node = await make_node(seed=seed, post_quantum="off")
    with pytest.raises(ConnectionLost, match="no key exchange in common") as caught:
        await node.connect(seed.id)
    assert "post_quantum" in (caught.value.hint or "")
