"""What the engines' libraries import and a node does not need is not loaded, and is there for code that does."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED = """
import sys
from meshnode.quic.engines import pick_engine
pick_engine("aioquic")
print(sorted(name for name in ("service_identity", "OpenSSL", "attr") if name in sys.modules))
"""
USED = """
from meshnode.quic.engines import pick_engine
pick_engine("aioquic")
from aioquic import tls
import service_identity, OpenSSL.crypto
print(tls.service_identity.VerificationError is service_identity.VerificationError)
print(tls.crypto.X509Store is OpenSSL.crypto.X509Store)
"""


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_engine_does_not_load_what_checks_certificates_of_a_ca() -> None:
    assert _run(UNUSED) == "[]\n"


def test_code_that_checks_such_certificates_with_aioquic_in_the_same_process_still_can() -> None:
    assert _run(USED) == "True\nTrue\n"


BARE = """
import sys
from meshnode.quic.engines import pick_engine
pick_engine("qh3")
import qh3
print(sorted(name for name in sys.modules if name.startswith(("qh3.asyncio", "qh3.h3.connection"))))
print("Headers" in vars(sys.modules["qh3.h3.events"]), "DataReceived" in vars(sys.modules["qh3.h3.events"]))
"""
WHOLE = """
from meshnode.quic.engines import pick_engine
pick_engine("qh3")
import qh3, qh3.h3.events
from qh3 import connect, h3_events, QuicConnection
from qh3.h3.connection import H3Connection
print(qh3.__version__.count("."), qh3.asyncio.connect is connect, h3_events is qh3.h3.events)
print(issubclass(h3_events.DataReceived, h3_events.H3Event), qh3.H3Connection is H3Connection, len(qh3.__all__) > 9)
from qh3.quic import connection, logger
print(logger.Headers == h3_events.Headers, connection.QuicConnection is QuicConnection)
print(sorted({type(module).__name__ for name, module in __import__("sys").modules.items() if name.startswith("qh3")}))
"""
VERSION = """
from meshnode.quic.engines import pick_engine
from meshnode.quic.engines.deferred import version_of
pick_engine("qh3")
import qh3
read = version_of(qh3)
print("__version__" in vars(qh3), read == qh3.__version__ == version_of(qh3))
"""


def test_the_default_engine_does_not_load_its_librarys_own_asyncio_and_http() -> None:
    pytest.importorskip("qh3")
    assert _run(BARE) == "[]\nTrue False\n"


def test_code_that_uses_all_of_that_library_in_the_same_process_still_can() -> None:
    pytest.importorskip("qh3")
    assert _run(WHOLE) == "2 True True\nTrue True True\nTrue True\n['module']\n"


def test_the_librarys_version_is_read_without_loading_it() -> None:
    pytest.importorskip("qh3")
    assert _run(VERSION) == "False True\n"
