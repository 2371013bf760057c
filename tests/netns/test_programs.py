"""Real programs while both of their hosts move: the short form of ``./dev bench programs``, and that it can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.programs import PROGRAMS, Program, faults, measured
from bench.programs.stage import Stage, Work, absent
from tests.netns.lab import Lab, require

pytestmark = pytest.mark.netns
WORK = Work(moves=3, every_s=0.4, megabytes=30, call_s=4.0, short=True)
NAMES = ("curl", "git clone, ssh", "scp", "psql", "redis-cli", "mosquitto_pub, mosquitto_sub", "dig", "MCP tool call")
ROWS = {program.name: program for program in PROGRAMS}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    require()
    with Lab() as lab:
        made = Stage(lab, WORK)
        yield made
        made.close()


def there(program: Program) -> Program:
    """Skip the test where a program is not installed."""
    if lacks := absent(program.needs):
        pytest.skip(f"{lacks} not installed")
    return program


@pytest.mark.parametrize("name", NAMES)
def test_a_program_notices_nothing_when_both_hosts_move(stage: Stage, name: str) -> None:
    found = measured(stage, there(ROWS[name]).play(stage))
    assert faults(found, WORK) == 0, found


@pytest.mark.parametrize(("name", "service"), [("psql", "postgres"), ("redis-cli", "redis")])
def test_the_table_tells_a_connection_that_broke(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, service: str
) -> None:
    program = there(ROWS[name])

    def break_it() -> None:
        listen = next(one["listen"] for one in stage.ask(stage.client, "forwards") if one["to"].endswith(service))
        stage.ask(stage.client, "unforward", listen)
        stage.ask(stage.client, "forward", listen, f"server/{service}")

    monkeypatch.setattr(stage, "move", break_it)
    found = measured(stage, program.play(stage))
    assert found["errors"] or found["reconnects"], found
    assert faults(found, WORK)
