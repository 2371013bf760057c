"""What whole nodes send and wake for when nothing is asked of them."""

from __future__ import annotations

from bench import rest


def test_a_node_at_rest_sends_little_and_wakes_for_nothing_in_vain() -> None:
    found = rest.run(4, 120.0, 60.0)
    assert found["bytes_by_kind"]["quic"] < 75, "probes, their ACKs, now and then ids"
    assert found["bytes_a_second"] < 210, "of a mesh two minutes old, joins and checks of the DHT among them"
    assert found["timers_a_minute"] < 420
    assert found["timers_by_name"]["Connections._tick"] < 170, "a received PING is acknowledged, and no more"
