"""Properties of the data structures that every layer uses."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.bounded import BoundedDict
from meshnode.base.rtt import RttEstimator
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import RateLimit, TokenBucket

quick = settings(max_examples=200, derandomize=True)

# ---- BoundedDict

keys = st.integers(0, 12)
entries = st.tuples(keys, st.integers())
changes = st.one_of(
    st.tuples(st.sampled_from(["set", "put", "setdefault", "update", "merge"]), entries),
    st.tuples(st.sampled_from(["pop", "touch"]), entries),
)


def _change(book: OrderedDict[int, int], name: str, key: int, value: int) -> tuple[int, int] | None:
    if name == "put" and isinstance(book, BoundedDict):
        return book.put(key, value)
    if name == "put":
        book[key] = value
        book.move_to_end(key)
    elif name == "set":
        book[key] = value
    elif name == "setdefault":
        book.setdefault(key, value)
    elif name == "update":
        book.update({key: value})
    elif name == "merge":
        book |= {key: value}
    elif name == "pop":
        book.pop(key, None)
    elif key in book:
        book.move_to_end(key)
    return None


@quick
@given(st.integers(1, 6), st.lists(changes, max_size=60))
def test_a_bounded_dict_is_an_ordered_dict_that_forgets_its_oldest_entry(bound, history):
    book, model = BoundedDict(bound), OrderedDict()
    for name, (key, value) in history:
        pushed_out = _change(book, name, key, value)
        _change(model, name, key, value)
        oldest = model.popitem(last=False) if len(model) > bound else None
        assert list(book.items()) == list(model.items())
        if name == "put":
            assert pushed_out == oldest


@quick
@given(st.integers(1, 6), st.lists(entries, max_size=20))
def test_a_bounded_dict_takes_the_last_of_the_entries_that_it_begins_with(bound, given_entries):
    assert list(BoundedDict(bound, dict(given_entries)).items()) == list(dict(given_entries).items())[-bound:]


def test_a_bounded_dict_that_could_hold_nothing_is_refused():
    with pytest.raises(ValueError):
        BoundedDict(0)


# ---- TokenBucket

rates = st.floats(0.01, 1e6)
saved = st.floats(0.01, 600)  # seconds of the rate that a burst is
steps = st.floats(-5, 60, allow_nan=False)
shares = st.floats(0, 1)  # of the burst


@quick
@given(rates, saved, st.lists(st.tuples(steps, shares), max_size=30))
def test_no_window_of_time_gives_more_than_the_burst_and_the_rate(rate, seconds, asks):
    burst = rate * seconds
    now = latest = 100.0
    bucket = TokenBucket(rate, burst, now)
    granted: list[tuple[float, float]] = []
    for step, share in asks:
        now += step
        latest = max(latest, now)
        if bucket.take(share * burst, now):
            granted.append((latest, share * burst))
    for first in range(len(granted)):
        total = 0.0
        for at, amount in granted[first:]:
            total += amount
            assert total <= (burst + rate * (at - granted[first][0])) * (1 + 1e-9) + rate * 2e-9


@quick
@given(rates, saved, st.lists(st.tuples(st.floats(-5, 0), st.booleans()), max_size=20))
def test_a_clock_that_stands_still_or_goes_back_costs_and_gives_no_tokens(rate, seconds, looks):
    burst = rate * seconds
    now = 1_000.0
    bucket = TokenBucket(rate, burst, now)
    for step, take_none in looks:
        now += step
        assert bucket.take(0, now) if take_none else bucket.wait(burst, now) == 0.0
    assert bucket.is_full(now)
    assert bucket.take(burst, now)
    assert not bucket.take(burst, now)


@quick
@given(rates, saved, st.lists(st.tuples(st.floats(0, 60), shares), max_size=20), shares)
def test_what_is_refused_is_granted_after_the_wait_that_was_told(rate, seconds, asks, share):
    burst = rate * seconds
    now = 100.0
    bucket = TokenBucket(rate, burst, now)
    for step, taken in asks:
        now += step
        bucket.take(taken * burst, now)
    wait = bucket.wait(share * burst, now)
    if wait > 1e-6:
        assert not bucket.take(share * burst, now + wait / 2)
    assert bucket.wait(share * burst, now + wait) <= 1e-9
    assert bucket.take(share * burst, now + wait)


@quick
@given(rates, saved, shares, st.floats(0.001, 60))
def test_a_bucket_is_full_when_what_was_taken_had_time_to_return(rate, seconds, share, passed):
    burst = rate * seconds
    bucket = TokenBucket(rate, burst, 0.0)
    assert bucket.take(share * burst, 0.0)
    again = share * burst / rate
    if passed < again * 0.999:
        assert not bucket.is_full(passed)
    assert bucket.is_full(again * 1.001 + 1e-6)


@quick
@given(rates, saved, st.floats(0, 2))
def test_a_drained_bucket_holds_no_more_than_it_was_left(rate, seconds, share):
    burst = rate * seconds
    bucket = TokenBucket(rate, burst, 0.0)
    bucket.drain(share * burst)
    left = min(1.0, share) * burst
    assert bucket.take(left, 0.0)
    assert not bucket.take(rate * 1e-6 + burst * 1e-6, 0.0)


@quick
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 900)), max_size=40))
def test_a_message_that_is_refused_charges_neither_messages_nor_bytes(asks):
    now = 0.0
    limit = RateLimit(TokenBucket(3, 5, now), TokenBucket(700, 1_500, now))
    messages, octets = TokenBucket(3, 5, now), TokenBucket(700, 1_500, now)
    for step, size in asks:
        now += step
        wait = limit.wait(size, now)
        assert wait == max(messages.wait(1, now), octets.wait(size, now))
        taken = limit.take(size, now)
        assert taken == (wait <= 1e-9)
        if taken:
            assert messages.take(1, now)
            assert octets.take(size, now)
        assert limit.is_full(now) == (messages.is_full(now) and octets.is_full(now))


# ---- RttEstimator

trips = st.lists(st.floats(1e-6, 100), min_size=1, max_size=50)


@quick
@given(trips)
def test_a_smoothed_rtt_lies_between_the_samples_and_so_does_what_it_deviates(samples):
    estimator = RttEstimator()
    for rtt in samples:
        estimator.sample(rtt)
    low, high = min(samples), max(samples)
    assert estimator.srtt is not None
    assert low * (1 - 1e-9) <= estimator.srtt <= high * (1 + 1e-9)
    assert 0 <= estimator.var <= max(samples[0] / 2, high - low) * (1 + 1e-9)


@quick
@given(trips, st.floats(0.001, 1), st.floats(1, 10), st.floats(0, 8))
def test_a_timeout_keeps_to_its_bounds_and_grows_with_the_deviations(samples, least, most, deviations):
    estimator = RttEstimator()
    assert estimator.timeout(least, most, unknown=0.7) == 0.7
    for rtt in samples:
        estimator.sample(rtt)
    timeout = estimator.timeout(least, most, unknown=0.7, deviations=deviations)
    assert least <= timeout <= most
    assert timeout <= estimator.timeout(least, most, unknown=0.7, deviations=deviations + 1)
    assert estimator.timeout(0, 1e9, unknown=0.7, deviations=0) == estimator.srtt


@quick
@given(st.floats(0.001, 10), st.floats(0.001, 10))
def test_a_timeout_comes_down_to_a_steady_rtt(first, steady):
    estimator = RttEstimator()
    estimator.sample(first)
    for _ in range(200):
        estimator.sample(steady)
    assert estimator.timeout(0, 1e9, unknown=1) == pytest.approx(steady, rel=0.01)


# ---- the timer table

MOVES = st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(-1, 9), st.integers(0, 3)), max_size=60)


@quick
@given(MOVES, st.lists(st.none() | st.integers(-1, 2), min_size=5, max_size=5))
def test_timers_fire_once_when_due_and_the_earliest_is_right_at_any_time(
    moves: list[tuple[int, int | None, int]], again: list[int | None]
) -> None:
    timers, deadlines, fired, now = Timers(), dict[int, float](), list[int](), 0.0

    def put(number: int, at: float | None) -> None:
        handles[number].set(at)
        deadlines.pop(number, None)
        if at is not None:
            deadlines[number] = at

    def fire(number: int, when: float) -> None:
        fired.append(number)
        assert deadlines.pop(number) <= when
        put(number, None if again[number] is None else when + again[number])

    handles = [timers.timer(partial(fire, number)) for number in range(5)]
    for number, delay, step in moves:
        put(number, None if delay is None else now + delay)
        assert timers.next_deadline() == min(deadlines.values(), default=None)
        now += step
        due = {one for one, at in deadlines.items() if at <= now}
        fired.clear()
        timers.run(now)
        assert due <= set(fired)
        assert len(fired) == len(set(fired))
        assert timers.next_deadline() == min(deadlines.values(), default=None)


def test_a_deadline_that_moves_with_every_packet_leaves_one_entry() -> None:
    timers = Timers()
    timer = timers.timer(lambda now: None)
    for packet in range(10_000):
        timer.set(packet + 600.0)
    assert len(timers._heap) == 1
    assert timers.next_deadline() == 10_599.0
    timer.cancel()
    timer.set(1.0)
    assert timers.next_deadline() is None
