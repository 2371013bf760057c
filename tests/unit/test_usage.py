"""What passes through a service is counted, and one caller takes no more of it than its rates."""

from __future__ import annotations

import pytest

from meshnode.base.metrics import Metrics
from meshnode.errors import ConfigError
from meshnode.identity.keys import Identity
from meshnode.services.usage import BYTES_IN, LEAST_BURST, MAX_CALLERS, WINDOW_S, Meter, Rates, Tolls, parse_rates

ONE, TWO = (Identity(bytes([n]) * 32).id for n in (1, 2))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("texts", "rates"),
    [
        ([], Rates()),
        (["20"], Rates(20.0)),
        (["0.5/s"], Rates(0.5)),
        (["5MB"], Rates(None, 5e6)),
        (["20", "64kB/s"], Rates(20.0, 64e3)),
        (["9B"], Rates(None, 9.0)),
    ],
)
def test_rates_are_connections_or_bytes(texts: list[str], rates: Rates) -> None:
    assert parse_rates(texts) == rates


@pytest.mark.parametrize("text", ["", "0", "0MB", "-1", "1TB", "nan", "1e9", "5 MB", "9999999999999GB", "²"])
def test_another_rate_is_told_with_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="no rate") as caught:
        parse_rates([text])
    assert "20 or 5MB" in caught.value.hint


def test_a_meter_shows_the_rate_of_the_last_seconds() -> None:
    meter = Meter(Metrics(), BYTES_IN)
    for tick in range(1000):
        meter.add(100, tick / 10)
    assert meter.total == 100_000
    assert 980 < meter.rate(99.9) < 1030
    assert 0.35 < meter.rate(99.9 + WINDOW_S) / meter.rate(99.9) < 0.4
    assert meter.rate(1000.0) < 1e-6


def test_a_caller_over_its_rate_is_refused_and_others_are_not() -> None:
    clock, metrics = Clock(), Metrics()
    tolls = Tolls(Rates(begins=2.0), metrics, clock)
    assert [tolls.of(ONE).begin() for _ in range(4)] == [True, True, False, False]
    assert tolls.of(TWO).begin()
    assert tolls.of().begin(), "this node's own programs have no rates"
    clock.now += 0.5
    assert [tolls.of(ONE).begin() for _ in range(2)] == [True, False]
    told = tolls.to_json()
    assert (told["opened"], told["refused"]) == (5, 3)
    assert metrics.counters["services_over_rate"] == 3


def test_bytes_over_a_callers_rate_wait_in_each_direction_on_its_own() -> None:
    clock, metrics = Clock(), Metrics()
    tolls = Tolls(Rates(octets=1e5), metrics, clock)
    first, again, other = tolls.of(ONE), tolls.of(ONE), tolls.of(TWO)
    assert first.into(60_000) == 0.0
    assert first.out(60_000) == 0.0
    pause = again.into(60_000)
    assert pause == pytest.approx(0.2), "all its connections share its rate"
    assert other.into(60_000) == 0.0
    clock.now += pause
    assert again.into(60_000) == 0.0
    assert tolls.to_json()["bytes_in"] == 180_000, "what waits is not counted"
    assert (metrics.counters["services_bytes_in"], metrics.counters["services_bytes_out"]) == (180_000, 60_000)


def test_a_rate_below_what_is_carried_at_once_lets_everything_pass_in_time() -> None:
    clock = Clock()
    toll = Tolls(Rates(octets=1000.0), Metrics(), clock).of(ONE)
    assert toll.into(LEAST_BURST) == 0.0
    waited, size = 0.0, LEAST_BURST + 5
    for _ in range(3):
        pause = toll.into(size)
        if not pause:
            break
        clock.now += pause
        waited += pause
    assert pause == 0.0
    assert waited == pytest.approx(LEAST_BURST / 1000)


def test_a_crowd_of_callers_takes_bounded_memory() -> None:
    tolls = Tolls(Rates(begins=1.0), Metrics(), Clock())
    assert tolls.of(ONE).begin()
    for number in range(MAX_CALLERS + 10):
        tolls.of(Identity(number.to_bytes(32, "big")).id)
    assert len(tolls._callers) == MAX_CALLERS
