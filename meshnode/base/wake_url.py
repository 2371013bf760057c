"""Wake URLs: where one HTTPS request starts a node that sleeps; in its signed record as the capability ``wake:URL``.

A stranger chooses the URL, so its form is narrow: no address but a host name or IPv4 address, no user, no fragment, no
other scheme. What parses here means the same to every parser.
"""

from __future__ import annotations

import re

from meshnode.base.limits import MAX_WAKE_URL
from meshnode.base.value import value
from meshnode.errors import ConfigError

WAKE = "wake:"
HTTPS_PORT = 443
FORM = re.compile(
    r"https://(?P<host>(?=.{1,253}[:/])[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)"
)


@value
class WakeUrl:
    """A parsed URL. ``path`` begins with a slash, and has the query."""

    host: str
    port: int
    path: str


def parse_wake_url(text: str) -> WakeUrl:
    """Return the parts of a wake URL: ``https://HOST[:PORT]/PATH``, the host in small letters.

    Raises ValueError.
    """
    found = FORM.fullmatch(text) if len(text) <= MAX_WAKE_URL else None
    if found is None or int(found["port"] or HTTPS_PORT) > 65535:
        raise ValueError("no wake URL")
    return WakeUrl(found["host"], int(found["port"] or HTTPS_PORT), found["path"])


def check_wake(wake: str, allow: tuple[str, ...]) -> None:
    """Check the settings of these names.

    Raises ConfigError.
    """
    try:
        if wake:
            parse_wake_url(wake)
    except ValueError as error:
        hint = f"https://HOST/PATH, at most {MAX_WAKE_URL} characters, the host in small letters"
        raise ConfigError(f"wake = {wake[:80]!r} is no URL that wakes", hint=hint) from error
    for text in allow:
        if not _is_allowed(text):
            raise ConfigError(
                f"wake_allow: {text[:80]!r}", hint="a host, HOST:PORT, .DOMAIN, any, or a network as 10.0.0.0/8"
            )


def _is_allowed(text: str) -> bool:
    if "/" in text:
        from ipaddress import ip_network

        try:
            ip_network(text)
        except ValueError:
            return False
        return True
    found = FORM.fullmatch(f"https://{text.removeprefix('.')}/")
    return found is not None and int(found["port"] or HTTPS_PORT) <= 65535
