"""The collector's pause while a node is loaded and made."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from meshnode.base.collector import paused


class Ring:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    gc.unfreeze()  # what the collection of tests, or a daemon of another test, has left
    gc.collect()
    yield
    gc.freeze()  # as after the collection of tests (tests/conftest.py)
    gc.enable()


def test_nothing_is_collected_inside_and_everything_after() -> None:
    with paused():
        assert not gc.isenabled()
        ring = weakref.ref(Ring())
        made = [[] for _ in range(3 * gc.get_threshold()[0])]  # type: ignore[var-annotated]
        assert ring() is not None
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert made
    gc.collect()
    assert ring() is None


def test_a_collector_that_was_off_stays_off_and_frozen_objects_stay_frozen() -> None:
    gc.disable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with paused():
        pass
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0.99 * frozen > 0, "but for those that have ended meanwhile"


def test_what_was_made_is_old_so_that_it_is_not_looked_at_at_once() -> None:
    gc.disable()  # or a young object is old by the time that it is looked for
    with paused():
        made = Ring()
    young = gc.get_objects(generation=0)
    assert not any(item is made for item in young)


def test_a_pause_that_fails_ends() -> None:
    with pytest.raises(ImportError), paused():
        raise ImportError
    assert gc.isenabled()
