"""Places of a service: of full ones the largest share gives way, and none is lost."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.sdk import places
from meshnode.sdk.places import Places


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TAKE_S", 0.05)
    monkeypatch.setattr(places, "WAIT_S", 0.2)


class Users:
    """Tasks that hold a place until they are ended."""

    def __init__(self, limit: int) -> None:
        self.places = Places(limit)
        self.running: list[str] = []
        self.refused: list[str] = []

    def add(self, name: str, *groups: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._use(name, *groups))

    async def _use(self, name: str, *groups: str) -> None:
        try:
            if not await self.places.take(*groups):
                self.refused.append(name)
                return
            self.running.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.running.remove(name)
        finally:
            self.places.leave()


async def test_one_host_with_many_ids_gives_way_to_others_of_its_network_and_elsewhere() -> None:
    users = Users(4)
    tasks = [users.add(f"hog {i}", "net", "host", f"id {i}") for i in range(50)]
    await asyncio.sleep(0)
    tasks += [users.add("beside", "net", "other", "b"), users.add("away", "far", "c", "c")]
    await asyncio.sleep(0.1)
    assert sorted(users.running) == ["away", "beside", "hog 0", "hog 1"]
    for task in tasks:
        task.cancel()


async def test_of_equal_shares_those_that_were_there_stay() -> None:
    users = Users(2)
    tasks = [users.add(name, name) for name in ("one", "two", "three")]
    await asyncio.sleep(0.3)
    assert (users.running, users.refused) == (["one", "two"], ["three"])
    for task in tasks:
        task.cancel()


async def test_a_place_goes_to_the_longest_waiting_and_none_is_lost_when_waiters_are_cancelled() -> None:
    users = Users(1)
    tasks = [users.add(str(i), "net") for i in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert users.running == ["2"]
    tasks[2].cancel()
    tasks[3].cancel()  # in the moment in which it is given the place
    await asyncio.sleep(0.01)
    assert users.running == []
    last = users.add("last", "net")
    await asyncio.sleep(0)
    assert users.running == ["last"]
    last.cancel()


async def test_of_too_many_that_wait_the_largest_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(1)
    tasks = [users.add(f"hog {i}", "net") for i in range(1 + places.MAX_WAITING)]
    await asyncio.sleep(0)
    tasks.append(users.add("other", "far"))
    await asyncio.sleep(0.01)
    assert users.refused == [f"hog {places.MAX_WAITING}"]
    for task in tasks:
        task.cancel()
