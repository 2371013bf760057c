"""The attacker's tools do what they say: a flood that stops short of the dear part shows nothing."""

from __future__ import annotations

import pytest

from attacks.foe import FIXED, Foe, first_flight
from meshnode.identity.keys import Identity
from meshnode.quic.engines import pick_engine


@pytest.mark.parametrize("name", ["aioquic", "qh3"])
def test_each_first_flight_of_a_flood_reaches_tls_and_brings_a_certificate(name: str) -> None:
    if name == "qh3":
        pytest.importorskip("qh3")
    listener, foe = Identity.generate(), Foe()
    flight = first_flight(listener.id)
    for _ in range(2):
        initial = foe.initial(listener.id, flight)
        odcid = initial[FIXED : FIXED + 8]
        engine = pick_engine(name).accept(listener, odcid, 30.0, 0.0)
        engine.receive([initial], 0.0)
        answer = engine.transmit(0.0)
        assert len(initial) == 1200
        assert sum(map(len, answer)) > 600, "the listener's flight, with its certificate"
