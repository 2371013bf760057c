"""What is installed with the project: no release with a known vulnerability, nothing but what the lock names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from meshnode.quic.engines.common import check_attributes
from tools.ends import requirements

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
FIRST_SAFE = {  # the first release without the vulnerabilities that were known in November 2026, and the last of those
    "aioquic": ("1.0", "none known"),
    "cbor2": ("5.9.0", "CVE-2026-26209: recursion without an end"),
    "click": ("8.3.3", "PYSEC-2026-2132"),
    "cryptography": ("50.0.0", "PYSEC-2026-3552, and those of the OpenSSL inside"),
    "dnslib": ("0.9.26", "none known"),
    "h11": ("0.16.0", "CVE-2025-43859: chunks that end early, and so requests that are smuggled"),
    "ifaddr": ("0.2", "none known"),
    "kademlia": ("2.2.3", "none known in its data structures, which are all that is used"),
    "pynacl": ("1.6.2", "CVE-2025-69277, in the libsodium inside"),
    "websockets": ("10.0", "CVE-2021-33880: passwords by timing"),
    "zeroconf": ("0.149.16", "CVE-2026-48487, and four ways to use up its memory"),
    "rich": ("13", "none known"),
    "uvloop": ("0.21", "none known"),
    "qh3": ("1.0", "none known"),
    "pytest": ("9.0.3", "CVE-2025-71176: its directory in /tmp"),
}
USED = [
    *PROJECT["dependencies"],
    *PROJECT["optional-dependencies"]["ui"],
    *PROJECT["optional-dependencies"]["uvloop"],
]

NODE_LOCK = (ROOT / "requirements-node.lock").read_text()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def bounds() -> list[tuple[str, str]]:
    tests = [text for text in PROJECT["optional-dependencies"]["dev"] if text.startswith("pytest>")]
    found = [
        re.fullmatch(r"([a-z0-9]+)(?:\[.*\])?(?:>=|==)([0-9.]+)(?:,[^;]*)?(?:;.*)?", text) for text in USED + tests
    ]
    return [(match[1], match[2]) for match in found if match]


def test_every_dependency_has_a_lower_bound() -> None:
    assert len(bounds()) == len(USED) + 1


@pytest.mark.parametrize(("name", "least"), bounds())
def test_no_release_with_a_known_vulnerability_is_within_the_bounds(name: str, least: str) -> None:
    safe, why = FIRST_SAFE[name]
    assert (*version(least), 0, 0) >= (*version(safe), 0), why


def entries(lock: str) -> list[str]:
    lines = lock.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("lock", [LOCK, NODE_LOCK], ids=["all", "node"])
def test_everything_in_a_lock_has_one_version_and_hashes_and_no_place_to_come_from(lock: str) -> None:
    for entry in entries(lock):
        form = r"[A-Za-z0-9_.-]+==[0-9.]+(\.post[0-9]+)?( ; [a-zA-Z0-9_' ]+)?( +--hash=sha256:[0-9a-f]{64})+"
        assert re.fullmatch(form, entry), entry[:80]


def test_a_node_is_installed_with_what_was_tested() -> None:
    assert set(entries(NODE_LOCK)) <= set(entries(LOCK))


@pytest.mark.parametrize(("name", "least"), bounds())
def test_the_lock_is_within_the_bounds(name: str, least: str) -> None:
    locked = re.search(rf"^{name}==([0-9.]+)", LOCK, re.MULTILINE)
    assert locked is not None
    assert version(locked[1]) >= version(least)


def test_a_library_of_another_shape_counts_as_not_installed() -> None:
    class Loss:
        def lost(self, *, now: float, space: int) -> None: ...

    class Quic:
        loss = Loss()

    check_attributes("a library", Quic(), {"": "loss", "loss": "lost(now,space)"})
    with pytest.raises(ImportError, match=r"a library lacks loss\.lost\(now,epoch\)"):
        check_attributes("a library", Quic(), {"loss": "lost(now,epoch)"})
    with pytest.raises(ImportError, match="lacks cc, loss"):
        check_attributes("a library", Quic(), {"": "loss cc", "loss": "found lost(now)"})


def test_both_ends_of_the_ranges_are_installed_by_pip() -> None:
    lowest, newest = requirements("lowest"), requirements("newest")
    assert all("==" in text for text in lowest)
    assert not any("==" in text for text in newest)  # ranges, so that the package fits into a project
    assert len(lowest) == len(newest) == len(USED)
