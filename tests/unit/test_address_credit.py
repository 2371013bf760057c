"""What may be sent to hosts that have not answered: earned bytes, the allowance, and what a flood does to both."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import (
    CREDIT_LIFE_S,
    HOST_ALLOWANCE,
    HOST_ALLOWANCE_PER_S,
    MAX_CREDIT_HOSTS,
    MAX_HOST_ALLOWANCES,
    MAX_PROVEN_ADDRESSES,
)
from meshnode.base.path import Path, ViaRelay, ViaSocket, ViaTunnel
from meshnode.stack.address_credit import OF_CONNECTION, OF_STRANGER, AddressCredit, Cause

A = Addr("203.0.113.77", 4242)
SIZE = 100


def spend(credit: AddressCredit, path: Path, cause: Cause, now: float = 0.0, size: int = SIZE) -> int:
    """Send until nothing more may go; returns how many bytes went."""
    total = 0
    while credit.charge(path, [size], cause, now) and total < 1_000_000:
        total += size
    return total


def test_a_host_that_never_spoke_and_that_nothing_names_is_sent_nothing() -> None:
    assert spend(AddressCredit(), A, Cause.ANSWER) == 0
    assert spend(AddressCredit(), A, Cause.SEARCH) == 0


@pytest.mark.parametrize("factor", [OF_STRANGER, OF_CONNECTION])
def test_what_came_from_a_host_goes_back_as_often_as_its_kind_earns(factor: int) -> None:
    credit = AddressCredit()
    credit.earn(A, 1_000, factor, 0.0)
    assert spend(credit, A, Cause.ANSWER) == factor * 1_000
    assert spend(credit, A, Cause.ANSWER, now=3600.0) == 0, "time earns nothing"


def test_what_was_earned_lapses_soon_after_the_last_datagram() -> None:
    for wait, left in ((CREDIT_LIFE_S, 1_100), (CREDIT_LIFE_S + 0.1, 100)):
        credit = AddressCredit()
        credit.earn(A, 1_000, OF_STRANGER, 0.0)
        credit.earn(A, 100, OF_STRANGER, wait)
        assert spend(credit, A, Cause.ANSWER, now=wait + CREDIT_LIFE_S) == left
        credit.earn(A, 1_000, OF_STRANGER, 100.0)
        assert spend(credit, A, Cause.ANSWER, now=100.1 + CREDIT_LIFE_S) == 0


def test_the_ports_of_a_host_share_its_credit() -> None:
    credit = AddressCredit()
    ports = [Addr(A.host, port) for port in range(1, 200)]
    for port in ports:
        credit.earn(port, 10, OF_CONNECTION, 0.0)
    assert sum(spend(credit, port, Cause.ANSWER, size=30) for port in ports[:5]) == 30 * len(ports)


@pytest.mark.parametrize(
    ("one", "other", "is_shared"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("203.0.113.1", "203.0.113.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", False),
        ("fe80::1%eth0", "fe80::1%eth1", False),
    ],
)
def test_a_host_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, is_shared: bool) -> None:
    credit = AddressCredit()
    credit.earn(Addr(one, 1), 1_000, OF_STRANGER, 0.0)
    assert spend(credit, Addr(other, 2), Cause.ANSWER) == (1_000 if is_shared else 0)


def test_dials_have_one_window_at_a_host_and_a_rate_and_probes_leave_them_half() -> None:
    credit = AddressCredit()
    assert spend(credit, A, Cause.PROBE) == HOST_ALLOWANCE / 2
    assert spend(credit, Addr(A.host, 9), Cause.DIAL) == HOST_ALLOWANCE / 2
    assert spend(credit, A, Cause.DIAL, now=1.0) == HOST_ALLOWANCE_PER_S
    assert spend(credit, A, Cause.PROBE, now=2.0) == 0


def test_an_address_that_answered_has_no_limit_and_others_of_its_host_still_have() -> None:
    credit = AddressCredit()
    credit.answered(A, 0.0)
    assert spend(credit, A, Cause.ANSWER) == 1_000_000
    assert spend(credit, ViaSocket(A, 3), Cause.ANSWER) == 1_000_000
    assert spend(credit, Addr(A.host, 9), Cause.ANSWER) == 0


def test_a_detour_has_no_limit_of_its_own_and_proves_no_address() -> None:
    credit = AddressCredit()
    for path in (ViaRelay("r"), ViaTunnel("", A.host, A.port)):
        credit.answered(path, 0.0)
        assert spend(credit, path, Cause.ANSWER) == 1_000_000
    assert not credit.proven
    assert spend(credit, A, Cause.ANSWER) == 0


def test_nodes_that_share_a_host_bring_it_an_allowance_each_up_to_a_bound() -> None:
    credit = AddressCredit()
    dialled = 0
    for turn in range(8):  # round trips: in each all are dialled that may be, and they answer
        may = 0
        while credit.charge(Addr(A.host, 9), [1_200], Cause.DIAL, 0.0):
            may += 1
        dialled += may
        for port in range(may):
            credit.answered(Addr(A.host, 1_000 + 1_000 * turn + port), 0.0)
    assert dialled > 500, "a crowd of them takes a few round trips"
    assert spend(credit, Addr(A.host, 9), Cause.DIAL, now=3600.0) <= MAX_HOST_ALLOWANCES * HOST_ALLOWANCE
    assert spend(credit, Addr("203.0.113.78", 1), Cause.DIAL) == HOST_ALLOWANCE, "and no other host"


def test_a_search_is_paid_by_its_grant_and_by_nothing_else() -> None:
    credit = AddressCredit()
    credit.earn(A, 5_000, OF_CONNECTION, 0.0)
    credit.grant(A, 1_000, 0.0)
    assert spend(credit, A, Cause.SEARCH) == 1_000
    credit.grant(A, 1_000, 0.0)
    credit.grant(A, 1_000, 0.0)
    assert spend(credit, A, Cause.SEARCH) == 1_000, "a new search takes the place of the last one's rest"


def test_what_does_not_fit_and_all_after_it_is_left_to_the_caller() -> None:
    credit = AddressCredit()
    credit.earn(A, 1_000, OF_STRANGER, 0.0)
    assert credit.charge(A, [400, 400, 400, 100], Cause.ANSWER, 0.0) == 2


def test_a_flood_from_one_network_costs_no_other_host_its_proof_or_its_credit() -> None:
    credit = AddressCredit()
    credit.answered(A, 0.0)
    credit.earn(Addr("198.51.100.7", 1), 1_000, OF_STRANGER, 0.0)
    for n in range(MAX_PROVEN_ADDRESSES + 100):
        credit.answered(Addr("192.0.2.1", 1 + n % 65_535), 0.0)
    for n in range(MAX_CREDIT_HOSTS + 100):
        credit.earn(Addr(f"2001:db8:1:{n:x}::1", 1), 10, OF_STRANGER, 0.0)
    assert A in credit.proven
    assert spend(credit, Addr("198.51.100.7", 1), Cause.ANSWER) == 1_000
    assert len(credit.proven) <= MAX_PROVEN_ADDRESSES
    assert len(credit._hosts) <= MAX_CREDIT_HOSTS
