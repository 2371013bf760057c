"""What the security page says in numbers is what the limits are, and what SECURITY.md has in scope a test tries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshnode.base import limits as at
from meshnode.services.udp import BEGIN_ALL, BEGIN_HOST, BEGIN_NETWORK

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8").split())
SCOPE = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## In scope")[2].partition("\nNot in scope")[0]
WORDS = "no", "one", "two", "three", "four", "five", "six"


def n(value: float) -> str:
    return f"{value:,.0f}"


def word(value: float) -> str:
    return WORDS[round(value)]


SAID = (
    f"over {n(at.JUNK_PER_SOURCE_PER_S)} such datagrams a second, after a burst of {n(at.JUNK_PER_SOURCE_BURST)}",
    f"a network that sends over {n(at.JUNK_PER_NETWORK_PER_S)} one of them",
    f"of their address ({n(at.UNCONNECTED_PER_ADDRESS_PER_S)} datagrams a second that open the box)",
    f"of their network ({n(at.UNCONNECTED_PER_NETWORK_PER_S)}) and in all ({n(at.UNCONNECTED_PER_S)})",
    f"not known yet costs {word(at.NEW_SENDER_COST)}",
    f"{n(at.ACCEPTS_PER_ADDRESS_PER_S)}, {n(at.ACCEPTS_PER_NETWORK_PER_S)} and {n(at.ACCEPTS_PER_S)} a second",
    f"for networks that send little, {n(at.UNCONNECTED_LITTLE_PER_S)} a second each",
    f"a contact {n(at.KNOWN_EACH_PER_S)} datagrams a second, all contacts of a network "
    f"{n(at.KNOWN_PER_NETWORK_PER_S)} and all together {n(at.KNOWN_PER_S)}",
    f"a seed {n(at.SEED_PER_S)} of its own",
    f"at most {word(at.MAX_CHAIN)} signatures, and the two of a succession",
    f"ends {n(at.GRANT_SKEW_S)} s after the grant of one end has expired",
    f"a grant has up to {at.MAX_CHAIN * at.MAX_GRANT >> 10} kB",
    f"at most {word(at.DHT_MAX_PER_SUBNET)} are of one network",
    f"as their stamps are accepted, which is {n(at.SEAL_WINDOW_S)} s",
    f"with each record, every {n(at.CLOCK_MARK_S / 60)} minutes and at the end",
    f"it believes it after {n(at.CLOCK_DOUBT_S)} s",
    f"sends {n(at.HOST_ALLOWANCE)} bytes to such a host and {n(at.HOST_ALLOWANCE_PER_S)} a second",
    f"Newer records of a live peer are taken {word(at.RECORDS_PER_S)} a second",
    f"the host gets {word(at.TUNNEL_DIALS_PER_HOST)} attempts at once and "
    f"{word(60 * at.TUNNEL_DIALS_PER_HOST_S)} a minute",
    f"one peer has {word(at.TUNNEL_DIALS_PER_PEER)} and {word(60 * at.TUNNEL_DIALS_PER_PEER_S)} a minute",
    f"all such hosts together {n(at.TUNNEL_DIALS_BURST)} and {word(at.TUNNEL_DIALS_PER_S)} a second",
    f"the first of about {n(2**at.ID_PRICE_BITS)} whose id",
    f"one introduction of a peer in {at.INTRODUCED_AGAIN_S} s is heeded",
    f"A port search** is {n(at.SEARCH_PROBES + at.SEARCH_SIDES)} probes",
    f"named the host within {n(at.SEARCH_FRESH_S)} s",
    f"{n(at.SEARCH_AGAIN_S)} s apart, and {word(at.SEARCH_TRIES)} times in ten minutes",
    f"{n(at.GOSSIP_INTAKE_RATE)} a second after a burst of {n(at.GOSSIP_INTAKE_BURST)}",
    f"pushes more than {n(at.GOSSIP_LINK_RATE)} a second",
    f"{word(at.GOSSIP_KEPT_CHOSEN)} neighbours that a node chose itself",
    f"a rate of {n(at.TOPIC_LINK_RATE)} a second for each link, and {n(at.TOPIC_TOTAL_RATE)} more for all",
    f"A link with over {n(at.TOPIC_LINK_MOST)} a second",
    f"one of {n(at.MAX_TUNNEL_PENDING)} places",
    f"for at most {n(at.TUNNEL_KNOCK_S)} s; afterwards a member has {word(at.MAX_TUNNELS_PER_MEMBER)} connections",
    f"over {word(at.TUNNEL_EMPTY_PER_S)} frames a second without a datagram, after {n(at.TUNNEL_EMPTY_BURST)}",
    f"half of {n(at.MAX_ACCEPTED)} at most",
    f"the last {n(at.RESERVED_DESCRIPTORS)} descriptors",
    f"has {n(at.CONTROL_REQUEST_S)} s, and is pushed out by {at.MAX_CONTROL_SILENT} newer ones",
    f"up to {at.MAX_UNREAD >> 20} MB of all connections together",
    f"Before its Hello a connection may send {at.MAX_EARLY >> 10} kB",
    f"over {n(at.CONTROL_FRAMES_PER_S)} control frames a second, after a burst of {n(at.CONTROL_FRAMES_BURST)}",
    f"{at.MAX_CONTROL_QUEUE >> 20} MB of control frames",
    f"above {at.MAX_BACKLOG >> 20} MB a connection ends, and while all have above {at.MAX_BACKLOGS >> 20} MB together",
    f"more comes than {at.PACED_FROM} datagrams at once",
    f"room for {n(at.MAX_PACED)} datagrams of all",
    f"datagram costs over {n(1000 * at.DEAR_DATAGRAM_S)} ms loses its connection",
    f"streams have over {n(at.MAX_HOLES)} holes",
    f"begins {n(BEGIN_HOST.each_s)} flows a second for a host, {n(BEGIN_NETWORK.each_s)} for a network and "
    f"{n(BEGIN_ALL.each_s)} for all",
    f"comes {n(at.LOG_KIND_BURST)} times at once and then every {n(1 / at.LOG_KIND_RATE)} s",
    f"one peer come {n(at.LOG_PEER_BURST)} times and then every {n(1 / at.LOG_PEER_RATE)} s",
    f"{n(at.LOG_BURST)} times and {word(at.LOG_RATE)} a second",
)
TRIED = {
    "a stranger": "live/test_strangers.py::test_no_probe_of_a_stranger_is_answered",
    "a node is taken": "live/test_hostile.py::"
    "test_an_impostor_at_the_dialled_address_is_a_peer_identity_error_and_fast",
    "a replayed datagram": "property/test_replay.py::test_no_datagram_counts_twice_however_full_the_guard_is",
    "a member makes": "property/test_amplification.py::"
    "test_a_victim_is_sent_at_most_three_times_what_came_from_it_and_once_without_a_connection",
    "bytes from": "fuzz/test_parsers.py::test_a_members_junk_frames_end_at_worst_its_own_connection",
    "the control socket": "live/test_local_users.py::"
    "test_a_home_of_another_user_is_refused_before_anything_is_written_there",
    "text of other": "live/test_foreign_text.py::test_no_command_and_no_log_shows_a_peers_text_as_it_is",
}


@pytest.mark.parametrize("said", SAID)
def test_a_number_on_the_security_page_is_that_of_its_limit(said: str) -> None:
    assert said in PAGE


def test_what_is_in_scope_is_tried_by_a_test_that_exists() -> None:
    found = re.findall(r"^- (.*)", SCOPE, re.MULTILINE)
    assert len(found) == len(TRIED)
    for line, (begins, test) in zip(found, TRIED.items(), strict=True):
        assert line.startswith(begins)
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
