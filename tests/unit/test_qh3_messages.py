"""TLS messages that qh3 is given and gives: the same as its own, read as strictly, and in far fewer calls."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from meshnode.identity.keys import Identity
from meshnode.quic.engines.key_exchange import HYBRID, X25519

tls = pytest.importorskip("qh3.tls", exc_type=ImportError)
hazmat = pytest.importorskip("qh3._hazmat", exc_type=ImportError)
messages = pytest.importorskip("meshnode.quic.engines.qh3_messages", exc_type=ImportError)
engine = pytest.importorskip("meshnode.quic.engines.qh3", exc_type=ImportError)

SUITE = tls.CipherSuite.AES_128_GCM_SHA256
CALLS = 850  # of both ends, from the dial until the handshake is confirmed; with the library's own codecs 1,520


def _written(push: Callable[[Any, Any], None], message: Any) -> bytes:
    buf = hazmat.Buffer(capacity=16384)
    push(buf, message)
    return bytes(buf.data)


def _read(pull: Callable[[Any], Any], data: bytes) -> Any:
    buf = hazmat.Buffer(data=data)
    found = pull(buf)
    assert buf.eof()
    return found


CLIENT_HELLO = tls.ClientHello(
    random=bytes(range(32)),
    legacy_session_id=b"",
    cipher_suites=[int(SUITE)],
    legacy_compression_methods=[0],
    alpn_protocols=["mesh"],
    key_share=[(HYBRID, b"k" * 1216), (X25519, b"x" * 32)],
    psk_key_exchange_modes=[1],
    signature_algorithms=[0x0807],
    supported_groups=[HYBRID, X25519],
    supported_versions=[0x0304],
    other_extensions=[(57, b"parameters")],
)
SERVER_HELLO = tls.ServerHello(
    random=bytes(range(32)),
    legacy_session_id=b"",
    cipher_suite=SUITE,
    compression_method=0,
    key_share=(HYBRID, b"c" * 1120),
    supported_version=0x0304,
)
EXTENSIONS = tls.EncryptedExtensions(alpn_protocol="mesh", other_extensions=[(57, b"parameters")])
CERTIFICATE = tls.Certificate(certificates=[(b"der" * 100, b"")])
VERIFY = tls.CertificateVerify(algorithm=0x0807, signature=b"s" * 64)
FINISHED = tls.Finished(verify_data=b"f" * 32)
ALL = {
    "client_hello": CLIENT_HELLO,
    "server_hello": SERVER_HELLO,
    "encrypted_extensions": EXTENSIONS,
    "certificate": CERTIFICATE,
    "certificate_verify": VERIFY,
    "finished": FINISHED,
}


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_the_library_reads_and_the_other_way_round(name: str) -> None:
    message = ALL[name]
    ours, theirs = (_written(getattr(module, f"push_{name}"), message) for module in (messages, tls))
    assert _read(getattr(tls, f"pull_{name}"), ours) == message
    assert _read(getattr(messages, f"pull_{name}"), theirs) == message
    assert _read(getattr(messages, f"pull_{name}"), ours) == message


@pytest.mark.parametrize("name", ALL)
def test_a_message_that_is_cut_short_or_has_a_length_changed_is_refused_as_tls_says(name: str) -> None:
    whole = _written(getattr(messages, f"push_{name}"), ALL[name])
    pull = getattr(messages, f"pull_{name}")
    body = whole[4:]
    for size in range(0 if name != "finished" else len(body), min(len(body), 200)):
        with pytest.raises(tls.Alert):
            _read(pull, whole[:1] + size.to_bytes(3, "big") + body[:size])
    if name != "finished":
        with pytest.raises(tls.Alert):
            _read(pull, whole[:1] + (len(body) + 1).to_bytes(3, "big") + body + b"\0")
    with pytest.raises(tls.Alert):
        _read(pull, b"\x18" + whole[1:])


@pytest.mark.parametrize("name", ALL)
def test_whatever_else_is_changed_in_a_message_only_an_alert_is_raised(name: str) -> None:
    whole = _written(getattr(messages, f"push_{name}"), ALL[name])
    rng, places = random.Random(name), range(4, min(len(whole), 120))
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.sample(places, 2):
            data[place] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
        with suppress(tls.Alert):
            _read(getattr(messages, f"pull_{name}"), bytes(data))


def test_an_extension_that_comes_twice_is_refused() -> None:
    hello = _written(messages.push_client_hello, CLIENT_HELLO)
    twice = messages.extension(13, messages.block(2, b"\x08\x07"))
    at = hello.index(twice)
    size = int.from_bytes(hello[at - 2 : at], "big") + len(twice)
    body = hello[4 : at - 2] + size.to_bytes(2, "big") + twice + hello[at:]
    with pytest.raises(tls.AlertIllegalParameter):
        _read(messages.pull_client_hello, b"\1" + messages.block(3, body))


def test_the_key_schedule_is_the_library_s() -> None:
    ours, theirs = messages.Schedule(SUITE), tls.KeySchedule(SUITE)
    for step in (None, hashlib.sha256(b"shared").digest() * 2, None):
        for schedule in (ours, theirs):
            schedule.extract(step)
            schedule.update_hash(repr(step).encode())
        secret = ours.derive_secret(b"c hs traffic")
        assert secret == theirs.derive_secret(b"c hs traffic")
        assert ours.finished_verify_data(secret) == theirs.finished_verify_data(secret)
        assert ours.certificate_verify_data(b"context") == theirs.certificate_verify_data(b"context")
        assert (ours.secret, ours.generation) == (theirs.secret, theirs.generation)


def test_a_client_hello_has_nothing_that_stands_for_nothing() -> None:
    me, peer = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2").id
    connection = engine.FACTORY.dial(me, peer, lambda _: b"", 9.0, 0.0)
    sent = [item.data for item in _crypto_of(connection)]
    hello = _read(tls.pull_client_hello, b"".join(sent))
    assert [kind for kind, _ in hello.other_extensions] == [57]
    assert hello.supported_groups == [HYBRID, X25519]


def _crypto_of(connection: Any) -> list[Any]:
    """The CRYPTO data of a new dialler, made again with a bridge of its own."""
    quic = connection._quic
    bridge = quic._create_tls(None)
    bridge.start()
    return list(bridge._outbound)


def test_a_handshake_takes_few_calls() -> None:
    me, peer = Identity(bytes(31) + b"\1"), Identity(bytes(31) + b"\2")
    count = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    for turn in range(2):  # the first makes certificates and keeps them
        count = 0
        sys.setprofile(note if turn else None)
        dialler = engine.FACTORY.dial(me, peer.id, lambda _: bytes(96), 60.0, 0.0)
        listener = engine.FACTORY.accept(peer, dialler.odcid, 60.0, 0.0)
        for step in range(4):
            for source, target in ((dialler, listener), (listener, dialler)):
                if datagrams := source.transmit(step * 0.001):
                    target.receive(datagrams, step * 0.001)
                source.events()
        sys.setprofile(None)
        assert dialler.handshake_confirmed
    assert 0 < count < CALLS
