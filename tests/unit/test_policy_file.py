"""The policy in a home is looked at in time, and the node hardly wakes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode import Identity
from meshnode.runtime.policy_file import LOOK_S, PolicyFile
from meshnode.trust.guard import Guard


class Loop:
    """A loop whose time is set, with one timer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due = 0.0
        self.wakes = 0
        self._action: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, action: Callable[[], None]) -> Loop:
        self.due, self._action = self.now + delay, action
        return self

    def call_soon(self, action: Callable[[], None]) -> None:
        action()

    def when(self) -> float:
        return self.due

    def cancel(self) -> None:
        self.due = float("inf")

    def run(self, until: float) -> None:
        while self.due <= until:
            self.now = self.due
            self.wakes += 1
            self._action()
        self.now = until


def _open(home: Path) -> tuple[Any, PolicyFile, Guard]:
    loop: Any = Loop()
    guard = Guard(Identity.generate().id)
    return loop, PolicyFile(loop, home, guard), guard


def test_a_node_that_is_awake_anyway_does_not_wake_for_its_policy(tmp_path: Path) -> None:
    loop, policy, _ = _open(tmp_path)
    for number in range(1, 101):
        loop.run(number * 0.4)
        policy.look(loop.now)
    assert not loop.wakes
    loop.run(loop.now + 10 * LOOK_S)
    assert loop.wakes == 10, "one that sleeps does"


@pytest.mark.parametrize("every", [0.01, 0.31, 0.8, 2.0])
def test_a_changed_policy_is_in_force_within_a_second_however_often_the_node_is_awake(
    tmp_path: Path, every: float
) -> None:
    loop, policy, guard = _open(tmp_path)
    loop.run(LOOK_S / 2)
    policy.look(loop.now)
    (tmp_path / "policy.toml").write_text("version = 1\n")
    changed = loop.now
    while loop.now + every < changed + 1.0:
        loop.run(loop.now + every)
        policy.look(loop.now)
    loop.run(changed + 1.0)
    assert guard.local is not None


@pytest.mark.parametrize("how", ["moved away", "emptied"])
def test_a_file_that_an_editor_is_about_to_write_changes_no_rule(tmp_path: Path, how: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("version = 1\n")
    loop, policy, guard = _open(tmp_path)
    if how == "moved away":
        file.rename(tmp_path / "policy.toml~")
    else:
        file.write_text("")
    loop.run(LOOK_S)
    policy.look(loop.now)
    assert guard.local is not None
    assert guard.local.version == 1, "it was looked at in the middle"
    file.write_text("version = 222\n")
    loop.run(loop.now + 1.0)
    assert guard.local.version == 222
    file.unlink()
    loop.run(loop.now + 1.0)
    assert guard.local is None, "it stays away"
