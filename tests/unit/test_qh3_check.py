"""A qh3 of another version is used when its core behaves, and else passed over, with what it does otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.quic.engines.credit import StreamWindows
from meshnode.quic.engines.packet_keys import PacketKeys

engine = pytest.importorskip("meshnode.quic.engines.qh3", exc_type=ImportError)
check = pytest.importorskip("meshnode.quic.engines.qh3_check", exc_type=ImportError)


@pytest.fixture(autouse=True)
def _another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.qh3, "__version__", "2.9.9")


def test_a_version_that_behaves_is_used() -> None:
    check.check_core(engine.FACTORY)


def test_a_core_that_grants_by_itself_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.quic.engines.qh3_connection.WIDE_OPEN", check.STREAM_WINDOW)
    with pytest.raises(ImportError, match=r"qh3 2\.9\.9 is not the tested .* more than it was granted"):
        check.check_core(engine.FACTORY)


def test_a_core_that_numbers_its_packets_otherwise_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    is_number = PacketKeys.is_number
    monkeypatch.setattr(PacketKeys, "is_number", lambda self, packet, number: is_number(self, packet, number + 1))
    with pytest.raises(ImportError, match="a connection ends"):
        check.check_core(engine.FACTORY)


def test_a_core_that_does_not_take_what_is_granted_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, now: float, rtt: float | None) -> list[tuple[int, int]]:
        return []

    monkeypatch.setattr(StreamWindows, "take_grants", none)
    with pytest.raises(ImportError, match="does not count"):
        check.check_core(engine.FACTORY)


def test_a_tested_version_is_not_tried_at_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.qh3, "__version__", check.TESTED[0])
    check.check_core(None)
