"""Two hosts on a LAN, no route out, no flags."""

from __future__ import annotations

import pytest

from bench.meeting import lan_first_ping
from tests.netns import lab

pytestmark = pytest.mark.netns


def test_first_ping_by_key_on_a_lan_without_a_route() -> None:
    lab.require()
    seconds, path = lan_first_ping()
    print(f"first ping {seconds:.2f} s from both starts")
    assert path == "lan"
    assert seconds < 8, "4 s on a quiet machine"
