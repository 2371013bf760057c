"""What aioquic imports and we do not need is not loaded, and is there all the same for code that does."""

from __future__ import annotations

import subprocess
import sys

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
