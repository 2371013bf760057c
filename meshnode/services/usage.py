"""How much passes through a service, and how much of it one caller may have. Sans I/O: ``now`` is monotonic seconds.

Ids are free where every member may use a service, so the rates of a caller hold back programs that go wrong, and nodes
that are let in by name; what shares a service out among strangers is its limit of connections (``sdk/places.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

from meshnode.base.bounded import BoundedDict
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import value
from meshnode.errors import ConfigError
from meshnode.identity.node_id import NodeId, quoted

WINDOW_S = 5.0  # over which a rate is smoothed
STEP_S = 0.05  # what comes within it counts as come at once
LEAST_BURST = 1 << 16  # bytes: what is carried at once
MAX_CALLERS = 1_024  # with rates of their own, x about 500 B; the one served longest ago begins with a full one again
RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|kB|MB|GB)?(?:/s)?", re.ASCII)
UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
MOST = 1e12

BYTES_IN = describe("services_bytes_in", "bytes that exposed services and forwards have received from the mesh")
BYTES_OUT = describe("services_bytes_out", "bytes that exposed services and forwards have sent into the mesh")
OVER_RATE = describe("services_over_rate", "connections and requests refused: their caller's are too many a second")
DROPPED = describe("services_udp_dropped", "datagrams of UDP services dropped: over a rate, or the path is too slow")
TOO_LARGE = describe("services_udp_too_large", "datagrams of UDP services dropped: larger than a flow carries")


class Meter:
    """Bytes of one direction, and their rate, smoothed over ``WINDOW_S``."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        """Make a meter that counts in the node's counter ``name`` too."""
        self.total = 0
        self._rate = 0.0
        self._at = 0.0
        self._metrics, self._name = metrics, name

    def add(self, count: int, now: float) -> None:
        """Count bytes.

        Args:
            count: How many.
            now: Monotonic seconds, never less than before.
        """
        self.total += count
        if now - self._at > STEP_S:
            self._rate, self._at = self.rate(now), now
        self._rate += count / WINDOW_S
        self._metrics.count(self._name, count)

    def rate(self, now: float) -> float:
        """Return the bytes a second at ``now``.

        What passed counts for less the longer ago it was: by 1/e after ``WINDOW_S``.
        """
        return self._rate * math.exp(-max(0.0, now - self._at) / WINDOW_S)


class Usage:
    """What has passed through one service or forward: ``into`` from the mesh, ``out`` to it."""

    def __init__(self, metrics: Metrics) -> None:
        self.into, self.out = Meter(metrics, BYTES_IN), Meter(metrics, BYTES_OUT)
        self.opened = self.refused = self.dropped = self.too_large = 0
        self._metrics = metrics

    def drop(self, too_large: bool) -> None:
        """Count a datagram that does not pass.

        Args:
            too_large: Because of its size, not because there were too many.
        """
        self.dropped += 1
        self.too_large += too_large
        self._metrics.count(TOO_LARGE if too_large else DROPPED)

    def refuse(self) -> None:
        """Count a connection or request over its caller's rate."""
        self.refused += 1
        self._metrics.count(OVER_RATE)

    def to_json(self, now: float) -> dict[str, int]:
        """Return it as plain JSON; rates are bytes a second of the last seconds, ``dropped`` has ``too_large`` too."""
        return {
            "opened": self.opened,
            "refused": self.refused,
            "bytes_in": self.into.total,
            "bytes_out": self.out.total,
            "dropped": self.dropped,
            "too_large": self.too_large,
            "rate_in": round(self.into.rate(now)),
            "rate_out": round(self.out.rate(now)),
        }


@value
class Rates:
    """What one caller may have a second: connections (of an HTTP service requests), and bytes each way; None: any."""

    begins: float | None = None
    octets: float | None = None


def parse_rates(texts: Iterable[str]) -> Rates:
    """Return the rates of texts such as ``20`` (connections) and ``5MB`` (bytes), each a second.

    Raises ConfigError.
    """
    begins = octets = None
    for text in texts:
        found = RATE.fullmatch(text)
        if found is None or not 0 < (number := float(found[1]) * UNITS.get(found[2] or "B", 1.0)) <= MOST:
            raise ConfigError(f"{quoted(text)} is no rate", hint="write connections or bytes a second: 20 or 5MB")
        if found[2] is None:
            begins = number
        else:
            octets = number
    return Rates(begins, octets)


class _Allowance:
    """What one caller has left."""

    __slots__ = ("begins", "into", "out")

    def __init__(self, rates: Rates, now: float) -> None:
        self.begins = _bucket(rates.begins, 1, now)
        self.into, self.out = _bucket(rates.octets, LEAST_BURST, now), _bucket(rates.octets, LEAST_BURST, now)


def _bucket(rate: float | None, least: float, now: float) -> TokenBucket | None:
    return TokenBucket(rate, max(rate, least), now) if rate is not None else None


class Toll:
    """The way of one caller's bytes through a service: counts them, and says how long they have to wait."""

    def __init__(self, usage: Usage, allowance: _Allowance | None, clock: Callable[[], float]) -> None:
        self._usage, self._allowance, self._clock = usage, allowance, clock

    def begin(self) -> bool:
        """Take a connection or a request of this caller.

        Returns:
            False when it has begun too many in the last moments: it is counted as refused, and is to be told so.
        """
        now = self._clock()
        bucket = self._allowance.begins if self._allowance is not None else None
        if bucket is not None and not bucket.take(1, now):
            self._usage.refuse()
            return False
        self._usage.opened += 1
        return True

    def drop(self, *, too_large: bool = False) -> None:
        """Count a datagram that does not pass."""
        self._usage.drop(too_large)

    def into(self, size: int) -> float:
        """Count bytes from the mesh.

        Returns:
            0.0 when they may pass. Else the seconds after which to ask again; nothing is counted then.
        """
        allowance = self._allowance
        return self._pass(allowance.into if allowance is not None else None, self._usage.into, size)

    def out(self, size: int) -> float:
        """Count bytes to the mesh.

        Returns:
            0.0 when they may pass. Else the seconds after which to ask again; nothing is counted then.
        """
        allowance = self._allowance
        return self._pass(allowance.out if allowance is not None else None, self._usage.out, size)

    def _pass(self, bucket: TokenBucket | None, meter: Meter, size: int) -> float:
        now = self._clock()
        if bucket is not None and not bucket.take(min(size, bucket.burst), now):
            return bucket.wait(min(size, bucket.burst), now)
        meter.add(size, now)
        return 0.0


FREE = Toll(Usage(Metrics()), None, lambda: 0.0)  # of what is not a service's


class Tolls:
    """The usage of one service, and what each of its callers has left of its rates."""

    def __init__(self, rates: Rates, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.usage = Usage(metrics)
        self._rates, self._clock = rates, clock
        self._callers: BoundedDict[NodeId, _Allowance] = BoundedDict(MAX_CALLERS)

    def of(self, caller: NodeId | None = None) -> Toll:
        """Return the toll of a caller.

        Args:
            caller: None means this node's own programs, which have no rates.
        """
        if caller is None or self._rates == Rates():
            return Toll(self.usage, None, self._clock)
        allowance = self._callers.get(caller) or _Allowance(self._rates, self._clock())
        self._callers.put(caller, allowance)
        return Toll(self.usage, allowance, self._clock)

    def to_json(self) -> dict[str, int]:
        """Return the usage as plain JSON."""
        return self.usage.to_json(self._clock())
