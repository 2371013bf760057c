"""Each target of ``./dev fuzz`` for a moment, from the same seeds: what is wrong for many inputs shows here at once."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.test_parsers import mutate

INPUTS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_no_damaged_message_raises(name: str) -> None:
    target = TARGETS[name]
    for number in range(INPUTS * target.share // 100):
        target.run(mutate(target.seeds[number % len(target.seeds)], number))
