"""The authority's policy on its way through the mesh: every live connection tells which version its ends have.

POLICY_HAVE says a version, at the start of a connection and after each change; an end that has less asks for it part by
part (POLICY_ASK, POLICY_PART), verifies the whole, and tells its other peers. So it takes a round trip and a half for
each hop, comes by every neighbour that is honest, and no liar can hold it back, forge it, or put an older one in force.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    MAX_LATE_PEERS,
    MAX_POLICY_FETCHES,
    POLICY_ASKS_BURST,
    POLICY_ASKS_PER_S,
    POLICY_FETCH_S,
    POLICY_PART,
)
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.errors import ConfigError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.trust.policy import MAX_VERSION
from meshnode.trust.signed_policy import MAX_SIGNED, SignedPolicy, open_policy, signed_version

MAX_PARTS = -(-MAX_SIGNED // POLICY_PART)

ADOPTED = describe("policy_adopted", "newer policies of the mesh's authority that were put in force")
FORGED = describe("policy_drop_forged", "policies dropped: the mesh's authority did not sign them")
STALE = describe("policy_drop_stale", "policies dropped: a newer one is in force, or one of that version")
BAD = describe("policy_drop_malformed", "frames about policies that were malformed, not asked for, or too many")


@state
class _Peer:
    """A connected peer: the version that it has, and the parts that it may ask for."""

    told: int
    asks: TokenBucket


@state
class _Fetch:
    """A policy that comes from a peer."""

    version: int
    until: float
    data: bytearray


class PolicyLink(Component):
    """Holds the newest policy, and spreads it. ``on_adopted`` gets the bytes of one that is to be kept."""

    frames = (Frame.POLICY_HAVE, Frame.POLICY_ASK, Frame.POLICY_PART)

    def __init__(self, context: Context) -> None:
        self.held: SignedPolicy | None = None
        self.on_adopted: Callable[[bytes], None] = lambda encoded: None
        self.on_current: Callable[[], None] = lambda: None
        self._context = context
        self._peers: dict[NodeId, _Peer] = {}
        self._fetches: dict[NodeId, _Fetch] = {}
        self._late: BoundedDict[NodeId, None] = BoundedDict(
            MAX_LATE_PEERS
        )  # that did not send what they said they have
        self._timer = context.timers.timer(self._tick)

    @property
    def takes_any(self) -> bool:
        """Whether this mesh has an authority that may sign one."""
        return self._context.settings.authority is not None

    @property
    def is_current(self) -> bool:
        """Whether no newer one is on its way from a peer; ``on_current`` is called when that comes true.

        One that did not send what it said it has is waited for no second time.
        """
        return all(peer in self._late for peer in self._fetches)

    @property
    def version(self) -> int:
        """The version in force; 0 without any."""
        return self.held.version if self.held is not None else 0

    def adopt(self, encoded: bytes) -> SignedPolicy:
        """Put a policy in force, and spread it. Raises ConfigError: it is forged, wrong, or not newer."""
        authority = self._context.settings.authority
        if authority is None:
            raise ConfigError("this mesh has no authority", hint="`meshnode mesh create` makes a mesh that has one")
        version = signed_version(encoded, authority)
        if version <= self.version:
            hint = "raise its version and sign it again"
            raise ConfigError(f"version {version} is not newer than {self.version}, which is in force", hint=hint)
        self.held = held = open_policy(encoded, authority)
        self._context.metrics.count(ADOPTED)
        self._context.guard.set_mesh(held.policy)
        self.on_adopted(encoded)
        for peer in list(self._peers):
            self._send(peer, Frame.POLICY_HAVE, held.version)
        return held

    # ---- what happens

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Tell a new peer which version this node has; forget one that is gone."""
        if self._context.settings.authority is None:
            return
        peer = connection.peer
        if up:
            self._peers[peer] = _Peer(0, TokenBucket(POLICY_ASKS_PER_S, POLICY_ASKS_BURST, now))
            if self.held is not None:
                self._send(peer, Frame.POLICY_HAVE, self.held.version)
        else:
            self._peers.pop(peer, None)
            if self._fetches.pop(peer, None) is not None:
                self._fetch(now)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Take a peer's version, its question for a part, or a part."""
        peer = self._peers.get(connection.peer)
        if peer is None:
            return
        numbers = [field for field in fields[1:] if type(field) is int and 0 <= field <= MAX_VERSION]
        match fields[0], len(fields), numbers:
            case Frame.POLICY_HAVE, 2, [version]:
                peer.told = version
                self._fetch(now)
            case Frame.POLICY_ASK, 3, [version, part] if part < MAX_PARTS and peer.asks.take(1, now):
                self._give(connection.peer, version, part)
            case Frame.POLICY_PART, 5, [version, part, parts] if type(fields[4]) is bytes:
                self._take(connection.peer, version, part, parts, fields[4], now)
            case _:
                self._context.metrics.count(BAD)

    def _give(self, peer: NodeId, version: int, part: int) -> None:
        held = self.held
        if held is None or held.version != version:
            return  # it hears of the newer one anyway
        parts = -(-len(held.encoded) // POLICY_PART)
        data = held.encoded[part * POLICY_PART : (part + 1) * POLICY_PART]
        self._send(peer, Frame.POLICY_PART, version, part, parts, data)

    def _take(self, peer: NodeId, version: int, part: int, parts: int, data: bytes, now: float) -> None:
        fetch = self._fetches.get(peer)
        size = len(fetch.data) if fetch is not None else 0
        is_next = fetch is not None and fetch.version == version and part * POLICY_PART == size
        if fetch is None or not is_next or not 0 < len(data) <= POLICY_PART or not part < parts <= MAX_PARTS:
            self._context.metrics.count(BAD)
            return
        fetch.data += data
        if part + 1 < parts and len(data) == POLICY_PART:
            fetch.until = now + POLICY_FETCH_S
            self._send(peer, Frame.POLICY_ASK, version, part + 1)
            return
        del self._fetches[peer]
        self._late.pop(peer, None)
        self._peers[peer].told = 0  # it is not asked for this one again
        if version > self.version:
            self._open(peer, bytes(fetch.data), now)
        self._fetch(now)

    def _open(self, peer: NodeId, encoded: bytes, now: float) -> None:
        before = self.version
        try:
            self.adopt(encoded)
        except ConfigError:
            authority = self._context.settings.authority
            is_signed = authority is not None and _is_signed(encoded, authority)
            self._context.metrics.count(STALE if is_signed and before else FORGED)
            if not is_signed and self._context.gossip is not None:
                self._context.gossip.blame(peer, now, forged=True)

    # ---- asking

    def _fetch(self, now: float) -> None:
        """Ask peers for what is newer than here; at most ``MAX_POLICY_FETCHES`` at once, each for its time.

        Those that did not send what they said they have come last, however often they say it.
        """
        for peer, known in sorted(self._peers.items(), key=lambda item: item[0] in self._late):
            if len(self._fetches) >= MAX_POLICY_FETCHES:
                break
            if known.told > self.version and peer not in self._fetches:
                self._fetches[peer] = _Fetch(known.told, now + POLICY_FETCH_S, bytearray())
                self._send(peer, Frame.POLICY_ASK, known.told, 0)
        self._timer.set(min((fetch.until for fetch in self._fetches.values()), default=None))
        if self.is_current:
            self.on_current()

    def _tick(self, now: float) -> None:
        """Give up peers that do not send what they say they have; others' turn comes."""
        for peer, fetch in list(self._fetches.items()):
            if fetch.until <= now or fetch.version <= self.version:
                del self._fetches[peer]
                if fetch.until <= now and peer in self._peers:
                    self._peers[peer].told = 0
                    self._late.put(peer, None)
        self._fetch(now)

    def _send(self, peer: NodeId, kind: Frame, *fields: object) -> None:
        connection = self._context.peers.connection(peer)
        if connection is not None:
            connection.send_frame(kind, *fields)


def _is_signed(encoded: bytes, authority: NodeId) -> bool:
    try:
        signed_version(encoded, authority)
    except ConfigError:
        return False
    return True
