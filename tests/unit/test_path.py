"""Each kind of path is its own: in dicts, in comparisons, and as text."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.base.path import Path, ViaRelay, ViaSocket, ViaTunnel, in_words, udp_address
from meshnode.paths.candidate import Candidate, CandidateBook, path_kind
from meshnode.paths.mtu import MtuSearch

A = Addr("192.0.2.1", 4242)
text, number = st.sampled_from(["", "a", "192.0.2.1", "relay!a", "wss!a"]), st.integers(0, 3)
addrs = st.builds(Addr, text, number)
KINDS = {
    Addr: addrs,
    ViaSocket: st.builds(ViaSocket, addrs, number),
    ViaTunnel: st.builds(ViaTunnel, text, text, number),
    ViaRelay: st.builds(ViaRelay, text),
}


@pytest.mark.parametrize(("one", "other"), list(combinations(KINDS, 2)), ids=lambda kind: kind.__name__)
def test_paths_of_two_kinds_are_never_equal(one: type[Path], other: type[Path]) -> None:
    @given(KINDS[one], KINDS[other])
    def never_equal(a: Path, b: Path) -> None:
        assert a != b
        assert len({a: 1, b: 2}) == 2

    never_equal()


TEXTS = {
    A: "192.0.2.1:4242",
    Addr("fe80::1%eth0", 7): "[fe80::1%eth0]:7",
    ViaSocket(A, 3): "192.0.2.1%side3:4242",
    ViaSocket(Addr("2001:db8::1", 7), 3): "[2001:db8::1%side3]:7",
    ViaTunnel("abc", "seed.example", 443): "wss!abc@seed.example:443",
    ViaTunnel("", "192.0.2.1", 7): "wss!192.0.2.1:7",
    ViaRelay("abc"): "relay!abc",
}


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_a_path_is_shown_by_a_text_of_its_kind(path: Path) -> None:
    assert str(path) == f"{path}" == TEXTS[path]


WORDS = {
    A: "192.0.2.1:4242",
    ViaSocket(A, 3): "192.0.2.1:4242",
    ViaTunnel("abc", "seed.example", 443): "WebSocket to seed.example:443",
    ViaTunnel("", "192.0.2.1", 7): "its WebSocket",
    ViaRelay("abcdefghijkl"): "relay abcdefgh",
}


@pytest.mark.parametrize("path", WORDS, ids=str)
def test_a_message_names_a_path_in_words(path: Path) -> None:
    assert in_words(path) == WORDS[path]


@pytest.mark.parametrize(
    ("path", "udp", "rank", "kind"),
    [
        (A, A, 0, "direct"),
        (Addr("10.9.0.7", 1), Addr("10.9.0.7", 1), 0, "lan"),
        (ViaSocket(A, 3), A, 0, "direct"),
        (ViaSocket(Addr("10.9.0.7", 1), 3), Addr("10.9.0.7", 1), 0, "lan"),
        (ViaTunnel("abc", "10.9.0.7", 443), None, 1, "direct"),
        (ViaRelay("abc"), None, 2, "relay"),
    ],
    ids=str,
)
def test_what_follows_from_the_kind_of_a_path(path: Path, udp: Addr | None, rank: int, kind: str) -> None:
    assert udp_address(path) == udp
    assert Candidate(path, "record", MtuSearch(0)).rank == rank
    assert path_kind(path, (("10.9.0.1", 24),)) == kind


def test_an_address_that_no_peer_can_have_is_no_candidate_by_an_extra_socket_either() -> None:
    book = CandidateBook(1452)
    assert book.learn(ViaSocket(Addr("224.0.0.1", 7), 3), "packet") is None
    assert book.learn(ViaSocket(A, 3), "packet") is not None
    assert book.learn(ViaTunnel("", "192.0.2.1", 99_999), "packet") is not None, "it only tells WebSockets apart"
    assert A not in book
