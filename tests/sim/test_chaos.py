"""A few seeds of ``./dev chaos``; the name of a failing one says how to repeat it."""

from __future__ import annotations

import pytest

from bench.chaos import one


@pytest.mark.parametrize("seed", range(30))
def test_the_invariants_hold_under_everything_at_once(seed: int) -> None:
    assert one(seed)[1] == "", f"repeat with: ./dev chaos --seed {seed}"
