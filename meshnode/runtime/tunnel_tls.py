"""TLS of tunnels: its certificates prove nothing, for both ends prove their keys inside."""

from __future__ import annotations

import ssl
from pathlib import Path

from meshnode.base.files import write_atomic
from meshnode.runtime.state_files import set_aside


def client_context() -> ssl.SSLContext:
    """Return a dialler's context, which takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the relay proves its key inside
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(path: Path) -> ssl.SSLContext:
    """Return a listener's context, with the key and certificate of a PEM file, which is made when there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    if path.exists() and not path.is_file():
        set_aside(path, "it is no file")  # a FIFO would block
    try:
        context.load_cert_chain(path)
    except FileNotFoundError:
        write_atomic(path, _self_signed())
    except OSError as error:  # ssl.SSLError is one
        set_aside(path, error.strerror or str(error))
        write_atomic(path, _self_signed())
    else:
        return context
    context.load_cert_chain(path)
    return context


def _self_signed() -> bytes:
    """Return a key and a certificate in PEM that prove nothing: the node's own key is proven inside."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
