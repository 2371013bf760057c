"""The attacker's tools: the product's own code, used with bad intent, and a process that sends what it makes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_quic_header
from nacl.bindings import crypto_secretbox

from meshnode.base.clock import SystemClock
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import NONCE_LENGTH, SEALED, TIME, MeshKey, Sealer
from meshnode.quic.engines import pick_engine
from meshnode.runtime.websocket import knock_name
from meshnode.stack.probe import HANDLE_LENGTH, TX_LENGTH, Ping, encode_ping

Address = tuple[str, int]
CLOCK = SystemClock()
OPEN = "open"
VERSION_1 = 1  # of QUIC
MIN_INITIAL = 1_200  # RFC 9000 section 14.1
IDLE, ATTACKED, CONTROL = range(3)  # where a flood is aimed
FIXED = 6  # bytes of a long header before the connection id: its first byte, the version and a length


class Foe:
    """An identity with the mesh key that does not behave."""

    def __init__(self, mesh: str = OPEN, identity: Identity | None = None) -> None:
        self.identity = identity or Identity.generate()
        self.mesh = MeshKey.from_text(mesh)
        self.sealer = Sealer(self.identity, self.mesh, CLOCK, os.urandom, born=0)

    def ping(self, to: NodeId, flags: int = 0, handle: bytes = bytes(HANDLE_LENGTH)) -> bytes:
        """Return a sealed PING."""
        return self.sealer.seal(to, encode_ping(Ping(flags, os.urandom(TX_LENGTH), handle)))

    def initial(self, to: NodeId, flight: Flight) -> bytes:
        """Return a first flight with a fresh, valid knock, which reaches TLS: it is sealed for its connection id."""
        odcid = os.urandom(8)
        at = flight.header.find(bytes(96))
        token = FIXED + flight.header[FIXED - 1]
        knocked = self.sealer.knock(to, odcid)
        header = (
            flight.header[: FIXED - 1] + b"\x08" + odcid + flight.header[token:at] + knocked + flight.header[at + 96 :]
        )
        pair = CryptoPair()
        pair.setup_initial(odcid, is_client=True, version=VERSION_1)
        return pair.encrypt_packet(header, flight.payload, flight.number).ljust(MIN_INITIAL, bytes(1))

    def tunnel(self, to: NodeId, address: Address) -> ssl.SSLSocket:
        """Open TLS to a tunnel's port with a valid knock, and no WebSocket in it. Raises OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        name = knock_name(self.sealer.knock(to, b"tunnel"))
        return context.wrap_socket(socket.create_connection(address, timeout=6), server_hostname=name)


class Flight(NamedTuple):
    """A first flight, opened: what its Initial packet is made of, with zeros in place of the knock."""

    header: bytes
    payload: bytes
    number: int


def first_flight(to: NodeId) -> Flight:
    """Return the first flight of a dial without the hybrid key exchange, which ``Foe.initial`` makes many of."""
    engine = pick_engine("aioquic", "off").dial(Identity.generate(), to, lambda odcid: bytes(96), 30.0, 0.0)
    (packet,) = engine.transmit(0.0)
    buffer = Buffer(data=packet)
    header = pull_quic_header(buffer, host_cid_length=8)
    pair = CryptoPair()
    pair.setup_initial(header.destination_cid, is_client=False, version=VERSION_1)
    return Flight(*pair.decrypt_packet(packet[: header.packet_length], buffer.tell(), 0))


def unproven(to: NodeId, sender: bytes = b"", mesh: str = OPEN) -> bytes:
    """Return a datagram that opens the receiver's box, names a sender and proves nothing: its mac is noise."""
    nonce = os.urandom(NONCE_LENGTH)
    plain = (sender or os.urandom(32)) + TIME.pack(int(CLOCK.wall() * 1e6)) + os.urandom(16) + bytes(32)
    return (
        bytes([SEALED])
        + nonce
        + crypto_secretbox(plain, nonce, MeshKey.from_text(mesh).derive(b"mesh-receiver", bytes(to)))
    )


Sockets = list[socket.socket]
Make = Callable[[Sockets], Callable[[], bytes]]


class Flood:
    """A process that sends datagrams at a rate until its context ends; ``rate`` tells what it reached.

    ``make`` runs in that process, with its sockets, and returns the function that makes one datagram after another: so
    what is dear (identities, keys) is made before the first is sent. Datagram n goes out by socket n modulo ``ports``;
    these are in ``networks`` networks of the loopback interface, when there are more than one.
    With ``control``, the address of a ``sink``, it waits until it is ``aimed`` there or at ``to``, by the same process.
    """

    def __init__(
        self,
        make: Make,
        to: Address,
        rate: float,
        ports: int = 1,
        networks: int = 1,
        control: Address | None = None,
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._sent = context.Value("Q", 0, lock=False)
        self._began = context.Value("d", 0.0, lock=False)
        self._aim = context.Value("i", ATTACKED if control is None else IDLE, lock=False)
        arguments = make, to, rate, ports, networks, control
        self._process = context.Process(target=self._send, args=arguments, daemon=True)

    def __enter__(self) -> Flood:
        self._process.start()
        while not self._began.value:
            if not self._process.is_alive():
                raise RuntimeError("the flood could not begin")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self._process.terminate()
        self._process.join()

    @property
    def sent(self) -> int:
        """Datagrams that were sent so far."""
        return int(self._sent.value)

    @property
    def rate(self) -> float:
        """Datagrams a second that were sent, up to now or the end."""
        until = getattr(self, "_ended", None) or time.monotonic()
        return self.sent / max(until - float(self._began.value), 0.001)

    def aimed(self, *, attacks: bool) -> Aimed:
        """Return a context in which it sends: at its victim, or at the control."""
        return Aimed(self, ATTACKED if attacks else CONTROL)

    def aim(self, where: int) -> None:
        """Send to where this says from now on."""
        self._aim.value = where

    def _send(self, make: Make, to: Address, rate: float, ports: int, networks: int, control: Address | None) -> None:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(ports)]
        for number, sock in enumerate(sockets):
            if networks > 1:
                sock.bind((f"127.1.{number % networks}.1", 0))
            sock.connect(to)
            sock.setblocking(False)
        one = make(sockets)
        self._began.value = began = time.monotonic()
        sent, since, aim = 0, 0, ATTACKED
        while True:
            if aim != self._aim.value:
                aim, began, since = self._aim.value, time.monotonic(), sent
            due = int((time.monotonic() - began) * rate) - (sent - since)
            if due <= 0 or aim == IDLE:
                time.sleep(0.0005)
                continue
            for _ in range(min(due, 100)):
                try:
                    sockets[sent % ports].sendto(one(), control if control and aim == CONTROL else to)
                except OSError:
                    pass
                sent += 1
            self._sent.value = sent


class Aimed:
    """A flood while it is aimed at one of its two addresses."""

    def __init__(self, flood: Flood, where: int) -> None:
        self._flood = flood
        self._where = where

    def __enter__(self) -> Aimed:
        self._began, self._sent = time.monotonic(), self._flood.sent
        self._flood.aim(self._where)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flood.aim(IDLE)
        self.rate = (self._flood.sent - self._sent) / max(time.monotonic() - self._began, 0.001)


def sink() -> socket.socket:
    """Return a bound UDP socket that is never read: what a flood's control is sent to, at ``getsockname()``."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock
