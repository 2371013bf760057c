"""Fixtures that several kinds of test share."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from meshnode import Config, Identity, Node
from meshnode.config import PREFIX
from meshnode.demo.stage import Process
from meshnode.identity import keyfile
from tests.engines import CHOICES, MIXED, Turns, take_turns
from tests.homes import make_home
from tools.children import end, on_interruption

LONGEST_S = 600  # of one test: what waits longer waits for ever
YOUNG_OBJECTS = 50_000  # that come before the collector looks at them: Python's 700 are for small programs

# how long an example takes says how busy the machine is, and nothing of the code
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

MakeNode = Callable[..., Awaitable[Node]]

# A script that starts the tests in the background, or nohup, has them ignore a signal, and what is ignored stays so in
# every program that they start (POSIX, exec); what is handled does not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def _stop(number: int) -> None:
    raise KeyboardInterrupt(f"signal {number}")  # as Ctrl-C, which has fixtures give back what they have


TOLD = on_interruption(_stop, signal.SIGTERM)


def pytest_unconfigure() -> None:
    """End the processes that an interrupted test has left."""
    end(TOLD)


TURNS = pytest.StashKey[Turns]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the nodes' QUIC engine."""
    parser.addoption("--engine", choices=CHOICES, default=MIXED, help="the QUIC engine of the tests' nodes")


def pytest_configure(config: pytest.Config) -> None:
    """Give the nodes of all tests the engine that was asked for, and none of the caller's own settings."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    config.stash[TURNS] = take_turns(config.getoption("--engine"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Collect tests without looking for garbage, and leave what has come by that out of the looks while tests run.

    Thousands of tests and the libraries that they import are most of a worker's objects, and to look at them was a
    tenth of the time of tests that compute. What they make themselves lives on, mostly, and to look at each 700 new
    objects was six parts in a hundred of it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        gc.enable()


WAITING, COMPUTING = ("netns", "live"), ("sim", "interop", "property", "fuzz")  # folders whose files take long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first, those that wait and those that compute by turns.

    Workers take files in this order: while one waits another has work, and the quick ones at the end fill the gaps.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting, computing = ([path for path in files if path.parent.name in names] for names in (WAITING, COMPUTING))
    by_turns = [path for pair in itertools.zip_longest(waiting, computing) for path in pair if path is not None]
    items[:] = [item for path in dict.fromkeys([*by_turns, *files]) for item in files[path]]


@pytest.fixture(autouse=True)
def _engines(request: pytest.FixtureRequest) -> None:
    """Begin the engines' turns of a test."""
    request.config.stash[TURNS].begin(request.node.nodeid)


@pytest.fixture(autouse=True)
def _an_end() -> Iterator[None]:
    """End a test that hangs, with a traceback of the place, so that the others still run."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"the test did not end in {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _ids_without_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the keys of new homes at once, here and for the demo's processes: a price takes 0.3 s of CPU or more.

    Tests make thousands. Other processes pay it, and ``tests/unit/test_dht_eclipse.py`` holds what it is for.
    """
    start = Process.start

    async def start_at_home(process: Process) -> None:
        make_home(process.home)
        await start(process)

    monkeypatch.setattr(keyfile, "make_identity", Identity.generate)
    monkeypatch.setattr(Process, "start", start_at_home)


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Put back the levels that a command of the test has set: INFO records keep what they tell of."""
    loggers = [logging.getLogger(name) for name in (None, "meshnode")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
async def make_node(tmp_path: Path) -> AsyncIterator[MakeNode]:
    """Start nodes on loopback, without mDNS unless asked; all are closed at the end."""
    async with several_nodes(tmp_path) as make:
        yield make


@asynccontextmanager
async def several_nodes(tmp_path: Path) -> AsyncIterator[MakeNode]:
    """Do what the fixture ``make_node`` does, on any loop."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def make(*, seed: Node | None = None, **settings: Any) -> Node:
            settings = {"listen": "127.0.0.1:0", "mdns": False, "home": tmp_path / f"node{next(numbers)}"} | settings
            if seed is not None:
                settings["seeds"] = (f"{seed.id}@{seed.record.endpoints[0]}",)
            return await stack.enter_async_context(Node(Config(**settings)))

        yield make


async def echo(reader: Any, writer: Any, peer: Any) -> None:
    """A service that sends back what it gets."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
