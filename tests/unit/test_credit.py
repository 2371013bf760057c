"""Stream credit that is granted beside an engine: never too much, and again until it has surely arrived."""

from __future__ import annotations

import random

from meshnode.quic.engines.credit import StreamWindows, expand, max_stream_data
from meshnode.quic.engines.packet_keys import PacketKeys

WINDOW = 1000
RTT = 0.1


def test_a_stream_is_granted_what_the_application_took_and_not_what_arrived() -> None:
    windows = StreamWindows(WINDOW)
    assert windows.deliver(4, 900, False)
    assert windows.take_grants(0.0, RTT) == [], "900 bytes arrived, none was read"
    assert not windows.consume(4, 100), "too little for a grant of its own"
    assert windows.consume(4, 400)
    assert windows.take_grants(0.0, RTT) == [(4, 500 + WINDOW)]
    assert windows.unread == 400


def test_more_than_was_granted_is_noticed() -> None:
    windows = StreamWindows(WINDOW)
    assert windows.deliver(4, WINDOW, False)
    assert not windows.deliver(4, 1, False)


def test_a_grant_is_sent_again_while_the_peer_may_wait_for_it_and_no_longer() -> None:
    windows = StreamWindows(WINDOW)
    windows.deliver(4, WINDOW, False)
    windows.consume(4, WINDOW)
    assert windows.take_grants(0.0, RTT) == [(4, 2 * WINDOW)]
    times = []
    now = 0.0
    for _ in range(5):
        at = windows.next_resend()
        assert at is not None
        assert at > now
        assert windows.take_grants(at - 0.001, RTT) == []
        assert windows.take_grants(at, RTT) == [(4, 2 * WINDOW)]
        times.append(at - now)
        now = at
    assert times == sorted(times), "less and less often"
    windows.deliver(4, 1, False)  # beyond the old limit: it knows the new one
    assert windows.next_resend() is None
    assert windows.take_grants(now + 60, RTT) == []


def test_a_grant_lost_before_the_peer_needed_it_is_sent_again_once_it_does() -> None:
    windows = StreamWindows(WINDOW)
    windows.deliver(4, 500, False)
    windows.consume(4, 500)
    assert windows.take_grants(0.0, RTT) == [(4, 1500)]
    assert windows.next_resend() is None, "500 bytes of the first grant are left"
    windows.deliver(4, 500, False)
    windows.take_grants(1.0, RTT)
    at = windows.next_resend()
    assert at is not None
    assert windows.take_grants(at, RTT) == [(4, 1500)]


def test_a_moved_path_and_a_peer_that_says_it_is_blocked_get_the_grant_at_once() -> None:
    windows = StreamWindows(WINDOW)
    windows.deliver(4, WINDOW, False)
    windows.consume(4, WINDOW)
    windows.take_grants(0.0, RTT)
    windows.resend()
    assert windows.take_grants(0.001, RTT) == [(4, 2 * WINDOW)]
    windows.on_blocked(4, WINDOW)
    assert windows.take_grants(0.002, RTT) == [(4, 2 * WINDOW)]
    windows.on_blocked(4, 2 * WINDOW)
    assert windows.take_grants(0.003, RTT) == [], "it knows already"


def test_a_stream_that_was_let_go_of_holds_nothing_back() -> None:
    windows = StreamWindows(WINDOW)
    windows.deliver(4, 900, False)
    windows.forget(4)
    assert windows.unread == 0
    assert windows.deliver(4, 100, True), "late bytes"
    assert windows.unread == 0
    assert not windows.consume(4, 1000)


def test_an_ended_stream_gets_no_credit_and_leaves_nothing_behind() -> None:
    windows = StreamWindows(WINDOW)
    windows.deliver(4, 900, True)
    assert not windows.consume(4, 900)
    assert windows.take_grants(0.0, RTT) == []
    assert windows.unread == 0
    assert not windows._streams


def test_any_order_of_reading_losing_and_sending_ends_with_everything_sent() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        windows = StreamWindows(WINDOW)
        total, sent, buffered, limit, now = rng.randrange(1, 20_000), 0, 0, WINDOW, 0.0
        while sent < total:
            size = min(limit - sent, total - sent, rng.randrange(1, 600))
            if size > 0:
                sent += size
                buffered += size
                assert windows.deliver(0, size, sent == total)
            assert windows.unread == buffered <= WINDOW
            taken = rng.randrange(buffered + 1) if rng.random() < 0.7 else buffered
            windows.consume(0, taken)
            buffered -= taken
            for _, granted in windows.take_grants(now, RTT):
                if rng.random() < 0.5:  # the other half is lost
                    limit = max(limit, granted)
            now += rng.random()
            assert now < 10_000, seed


def test_keys_are_derived_as_rfc_9001_appendix_a1_shows() -> None:
    secret = bytes.fromhex("c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea")
    assert expand(secret, b"quic key", 16).hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert expand(secret, b"quic iv", 12).hex() == "fa044b2f42a3fd3b46fb255c"
    assert expand(secret, b"quic hp", 16).hex() == "9f50449e04a0e810283a1e9933adedd2"


def test_the_number_of_a_packet_is_recognised_and_no_other() -> None:
    sealer = PacketKeys(bytes(32))
    for number in (0, 1, 255, 70_000, 5_000_000_000):
        packet = sealer.seal(b"\7" * 8, number, max_stream_data([(4, 10_000), (400, 1 << 40)]))
        assert packet[1:9] == b"\7" * 8
        assert sealer.is_number(packet, number)
        assert not sealer.is_number(packet, number + 1)
        assert not PacketKeys(bytes([1]) * 32).is_number(packet, number)
