"""The parts of a stack: what each may handle, and what each offers to the others.

A component imports no other component. What happens to all of them are the methods of ``Component``: it overrides
those that concern it, and ``Hooks`` calls them in the order of the list in ``stack.py``. What one asks of another goes
through the protocols below, which the ``Context`` holds. Deadlines are set in the one table, ``Context.timers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

from meshnode.base.address import Addr
from meshnode.base.fair_table import Groups
from meshnode.base.path import Hop, Path, ViaRelay
from meshnode.base.timers import OnError
from meshnode.discovery.dht.kept import Kept
from meshnode.discovery.dht.statements import OnStored, ignore_stored
from meshnode.discovery.resolver import Resolved
from meshnode.errors import GrantError, MeshError, NotFound
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import MeshKey
from meshnode.paths.effects import Effect, Switched
from meshnode.quic.connection import Connection, ConnectionEvents
from meshnode.quic.hello import Frame, Hello
from meshnode.quic.stream import Stream
from meshnode.relay.frames import Frame as RelayFrame
from meshnode.stack.probe import Pinged
from meshnode.stack.session import OnConnect, Session
from meshnode.trust.chain import Chain, Standing
from meshnode.trust.redemptions import Redemptions
from meshnode.trust.revocation import Revocation
from meshnode.trust.revocations import Revocations
from meshnode.trust.rotation import Rotation
from meshnode.trust.signed_policy import SignedPolicy

if TYPE_CHECKING:
    from meshnode.gossip import Changed, Entry, Kind, MemberChanged, Status

P = ParamSpec("P")
OnControl = Callable[[Connection, list[object], float], None]


def tell(hooks: Iterable[Callable[P, object]], on_error: OnError, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call hooks in their order; one that raises keeps no other from being told."""
    for hook in hooks:
        try:
            hook(*args, **kwargs)
        except Exception as error:
            on_error(error)


class Component:
    """One part of a stack. ``frames`` and ``kinds`` are the control frames and sealed messages that it owns."""

    frames: Sequence[Frame] = ()
    kinds: Sequence[int] = ()

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Handle one of its control frames.

        ``fields`` begins with the frame's number; the peer chose the rest, which is to be checked here.
        """

    def on_sealed(self, sender: NodeId, body: bytes, source: Path, size: int, now: float) -> None:
        """Handle one of its sealed messages.

        ``sender`` has proven its key; ``body`` begins with the kind, and the rest is unchecked. ``source`` is unproven:
        answers there must not be much larger than ``size``, that of the whole datagram.
        """

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Note that a peer's connection is ready, or over.

        It is told once each; a connection that never became ready is not told.
        """

    def takes_stream(self, connection: Connection, stream: Stream) -> bool:
        """Return True to take a stream that a peer has opened.

        The components are asked in order until one takes it; the application gets what none takes.
        """
        return False

    def on_session_gone(self, session: Session, now: float) -> None:
        """Note that nothing is kept for this peer any more."""

    def on_newer_record(self, session: Session, record: EndpointRecord, now: float) -> None:
        """Take a newer record of a peer that has a session.

        It has been verified, and its addresses are candidates already.
        """

    def on_switched(self, session: Session, switched: Switched, now: float) -> None:
        """Note that a peer's packets are sent over another path.

        ``switched.old`` is None for the first path; ``switched.failed`` says that the old one was silent.
        """

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Note that something expected of a peer did not come in time, or that the peer answers again.

        The wait is a few round trips: long before QUIC gives the connection up.
        """

    def on_probed(self, sender: NodeId, now: float) -> None:
        """Note that a member has sent a PING."""

    def on_introduced(self, session: Session, begin: float, now: float) -> None:
        """Note that a relay has introduced the peer.

        The ordinary probes begin at ``begin``, in monotonic seconds, at both ends together.
        """

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Note that there is a configured address of this peer.

        It is in ``Context.records.hints``, and may be there again.
        """

    def on_clock_set(self, now: float) -> None:
        """Note that the wall clock was set: what this node dated by it before may be of no use to others."""

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Tell this node's new record to the nodes that should have it."""

    def flush(self, now: float) -> None:
        """Send what is due.

        It is called once after the component has entered itself in ``Context.dirty``, and again after ``RETRY_S`` when
        it raises.
        """

    def close(self, now: float) -> None:
        """Say goodbye to peers.

        The last of the list is the first to do so; what it sends is flushed before the next one's turn.
        """


class Hooks:
    """For each method of ``Component`` the components that override it, in the order of the list."""

    def __init__(self, parts: Sequence[Component]) -> None:
        def bound(method: str) -> list[Any]:
            stock = getattr(Component, method)
            return [getattr(part, method) for part in parts if getattr(type(part), method) is not stock]

        self.control: dict[int, OnControl] = {frame: part.on_control for part in parts for frame in part.frames}
        self.sealed = {kind: part.on_sealed for part in parts for kind in part.kinds}
        self.link: list[Callable[[Connection, bool, float], None]] = bound("on_link")
        self.stream: list[Callable[[Connection, Stream], bool]] = bound("takes_stream")
        self.session_gone: list[Callable[[Session, float], None]] = bound("on_session_gone")
        self.newer_record: list[Callable[[Session, EndpointRecord, float], None]] = bound("on_newer_record")
        self.switched: list[Callable[[Session, Switched, float], None]] = bound("on_switched")
        self.silence: list[Callable[[NodeId, bool, float], None]] = bound("on_silence")
        self.probed: list[Callable[[NodeId, float], None]] = bound("on_probed")
        self.introduced: list[Callable[[Session, float, float], None]] = bound("on_introduced")
        self.seed: list[Callable[[NodeId, float], None]] = bound("on_seed")
        self.own_record: list[Callable[[EndpointRecord, float], None]] = bound("on_own_record")
        self.clock_set: list[Callable[[float], None]] = bound("on_clock_set")
        self.close: list[Callable[[float], None]] = bound("close")[::-1]

    def add(self, part: Component) -> None:
        """Tell one more, behind the others, of silences, of sessions that end and of this node's records."""
        self.silence.append(part.on_silence)
        self.session_gone.append(part.on_session_gone)
        self.own_record.append(part.on_own_record)


class Links(ConnectionEvents, Protocol):
    """``connections.py``: sessions begin and end there, packets go in and out."""

    closed: bool
    awaited: dict[NodeId, Callable[[float], object]]

    def session(self, peer: NodeId, now: float) -> Session | None: ...
    def source_of(self, connection: Connection) -> Groups: ...
    def forget_if_idle(self, session: Session) -> None: ...
    def touch(self, connection: Connection) -> None: ...
    def arm(self, session: Session) -> None: ...
    def flush(self, now: float) -> None: ...


class Dials(Protocol):
    """``dialing.py``: how connections begin."""

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None: ...
    def connect_member(self, peer: NodeId, now: float, answer: OnConnect) -> None: ...
    def begin(self, session: Session, now: float) -> None: ...
    def on_initial(self, data: bytes, odcid: bytes | None, source: Path, now: float) -> None: ...
    def is_answered(self, session: Session, source: Path, now: float) -> bool: ...
    def on_dial_over(self, session: Session, error: MeshError, now: float) -> None: ...
    def release_held(self, session: Session) -> None: ...
    def deadline(self, session: Session) -> float | None: ...
    def tick(self, session: Session, now: float) -> None: ...


class Fences(Protocol):
    """``fencing.py``: two processes with one key."""

    stood_down: bool

    def decides(self, session: Session, arrival: Connection, hello: Hello) -> bool: ...
    def on_proof(self, peer: NodeId, proof: str, now: float, *, was_ready: bool = False) -> None: ...
    def heard(self, record: EndpointRecord, now: float) -> None: ...
    def outbid(self, now: float) -> None: ...
    def refusal(self, peer: NodeId) -> MeshError | None: ...


class Admits(Protocol):
    """``admission.py``: which of a peer's connections lives."""

    def on_hello(self, connection: Connection, hello: Hello) -> None: ...
    def resume(self, session: Session) -> None: ...
    def ask_of(self, connection: Connection) -> None: ...
    def tell_of_twin(self, peer: NodeId) -> None: ...
    def is_alive(self, connection: Connection, answer: Callable[[bool], None]) -> None: ...


class Judges(Protocol):
    """``standings.py``: what the peers' grants say of them."""

    redemptions: Redemptions
    on_own: Callable[[Chain], None]

    def count(self, standing: Standing) -> bool: ...
    def check(self, standing: Standing, now: float) -> None: ...
    def standing(self, peer: NodeId) -> Standing | None: ...
    def is_over(self, standing: Standing) -> bool: ...
    def own(self) -> Standing | None: ...
    def take(self, peer: NodeId, grants: Chain) -> GrantError | None: ...
    def set_own(self, chain: Chain) -> None: ...
    def end_revoked(self, now: float) -> None: ...


class Secrets(Protocol):
    """``mesh_key_link.py``: the next secret of the mesh."""

    held: Rotation | None
    on_adopted: Callable[[Rotation, MeshKey], None]

    def adopt(self, encoded: bytes, now: float) -> bool: ...


class Probes(Protocol):
    """``path_probes.py``: the effects of path cores, and all PINGs."""

    def settle(self, session: Session, now: float) -> None: ...
    def drain(self, session: Session, now: float) -> None: ...
    def carry_out(self, session: Session, effects: Sequence[Effect], now: float) -> None: ...
    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None: ...
    def ping_once(self, session: Session, path: Path) -> None: ...
    def ask(
        self, peer: NodeId, connection: Connection | None, paths: Sequence[Path], now: float, alive: Callable[[], None]
    ) -> None: ...
    def on_closed(self, connection: Connection, now: float) -> None: ...


class Statements(Protocol):
    """The DHT, for values that are no records."""

    @property
    def has_room(self) -> bool: ...
    def keep_statements(self, kept: Kept) -> None: ...
    def find_statement(self, key: bytes, now: float, done: Callable[[float], None]) -> None: ...
    def publish_statement(self, key: bytes, encoded: bytes, now: float, done: OnStored = ignore_stored) -> None: ...


class Records(Protocol):
    """``resolution.py``: what is known of where peers are."""

    @property
    def hints(self) -> Mapping[NodeId, tuple[Path, ...]]: ...

    @property
    def statements(self) -> Statements | None: ...

    def cached(self, peer: NodeId) -> EndpointRecord | None: ...
    def offer(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None: ...
    def pushed(self, peer: NodeId, encoded: bytes, now: float) -> None: ...
    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None: ...
    def look_up(self, peer: NodeId, now: float) -> None: ...
    def watch(self, peer: NodeId, now: float) -> None: ...
    def watch_if_used(self, peer: NodeId, now: float, *, dialling: bool = False) -> None: ...
    def seek(self, peer: NodeId, now: float) -> None: ...
    def contacts(self) -> list[NodeId]: ...
    def contact_at(self, peer: NodeId, now: float) -> Path | None: ...
    def moving(self, now: float) -> None: ...
    def moved(self, now: float) -> None: ...


class Relays(Protocol):
    """``relay_client.py``: the relays that this node uses."""

    @property
    def homes(self) -> tuple[NodeId, ...]: ...

    def uses(self, peer: NodeId) -> bool: ...
    def offer(self, session: Session, now: float) -> None: ...
    def moved(self, now: float) -> None: ...
    def wrap(self, peer: NodeId, path: ViaRelay, datagrams: list[bytes]) -> tuple[Hop, list[bytes]] | None: ...
    def ask_introduction(self, session: Session) -> None: ...


class Serving(Protocol):
    """``relay_service.py``: this node as a relay."""

    def serves(self, peer: NodeId) -> bool: ...
    def clients(self) -> int: ...
    def carry(self, frame: RelayFrame, now: float) -> bool: ...


class Policies(Protocol):
    """``policy_link.py``: the policy of the mesh's authority."""

    held: SignedPolicy | None
    on_adopted: Callable[[bytes], None]
    on_current: Callable[[], None]

    @property
    def is_current(self) -> bool: ...
    @property
    def takes_any(self) -> bool: ...
    @property
    def version(self) -> int: ...
    def adopt(self, encoded: bytes) -> SignedPolicy: ...


class Revokes(Protocol):
    """``revocation_link.py``: what is revoked in this mesh."""

    held: Revocations | None
    on_taken: Callable[[], None]

    @property
    def waits(self) -> bool: ...
    def own_revoked(self) -> bool: ...
    def take(self, encoded: bytes) -> Revocation | None: ...
    def restore(self, statements: list[bytes] | None) -> None: ...


class Own(Protocol):
    """``own_record.py``: this node's addresses and record."""

    def changed(self, now: float) -> None: ...
    def hear_loopback(self) -> None: ...
    def on_heard(self, record: EndpointRecord, now: float) -> None: ...
    def seen_as(self, peer: NodeId, source: Path, seen: Addr, now: float) -> None: ...


class Use(Protocol):
    """``link_use.py``: which connections only gossip wanted."""

    def is_used(self, peer: NodeId) -> bool: ...
    def add(self, peer: NodeId) -> None: ...


class Spread(Protocol):
    """``gossip_entries.py``: entries that every member gets, and what is believed of members."""

    def check(self, kind: int, fits: Callable[[Entry], bool]) -> None: ...
    def subscribe(self, kind: int, callback: Callable[[Changed, float], None]) -> None: ...
    def on_expiry(self, callback: Callable[[Entry, float], None]) -> None: ...
    def watch(self, callback: Callable[[MemberChanged, float], None]) -> None: ...
    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry: ...
    def publish_soon(self, kind: Kind, name: str, value: bytes | None, ttl: int, now: float) -> None: ...
    def blame(self, peer: NodeId, now: float, *, forged: bool = False) -> None: ...
    def bar(self, peer: NodeId, now: float) -> None: ...
    def lives(self, peer: NodeId) -> bool: ...
    def add_record(self, record: EndpointRecord, now: float) -> None: ...
    def on_barred(self, callback: Callable[[NodeId, float], None]) -> None: ...
    def stored(self, kind: int) -> list[Entry]: ...
    def count(self, kind: int) -> int: ...
    def is_news(self, entry: Entry) -> bool: ...
    def found_elsewhere(self, which: Callable[[Entry], bool]) -> None: ...
    def status(self, peer: NodeId) -> Status: ...
    def moved(self) -> None: ...
