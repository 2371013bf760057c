"""Requests to a UPnP Internet gateway over HTTP: its description and its actions. A codec only.

WANIPConnection:1 (2001), WANIPConnection:2 (2010) and WANPPPConnection:1 share the actions used here, except
``AddAnyPortMapping``, which only version 2 has.
"""

from __future__ import annotations

from meshnode.base.limits import MAX_UPNP_SERVICES
from meshnode.base.value import value
from meshnode.nat.portmap import xml
from meshnode.nat.portmap.ssdp import Url, on_router

ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
WAN_SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
CONFLICT = 718  # ConflictInMappingEntry
SAME_PORT_ONLY = 724  # SamePortValuesRequired
PERMANENT_ONLY = 725  # OnlyPermanentLeasesSupported
NO_SUCH_MAPPING = 714


@value
class Service:
    """One WAN connection of the router, and where its actions are posted to."""

    type: str
    control: Url

    @property
    def picks_ports(self) -> bool:
        """True when it has ``AddAnyPortMapping``."""
        return self.type.endswith("WANIPConnection:2")


@value
class Answer:
    """An action's results by name; ``error`` is UPnP's code when it failed, 0 when all is well."""

    values: dict[str, str]
    error: int = 0


def get(url: Url) -> bytes:
    """Return the HTTP request for the description."""
    lines = [f"GET {url.path} HTTP/1.1", f"Host: {url.addr}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def services(document: bytes, location: Url) -> list[Service]:
    """Return the WAN connections that a description lists, the best kind first. Raises ValueError for bad XML.

    One whose control address is not on the router is left out.
    """
    root = xml.parse(document)
    base = location
    text = root.find("URLBase")  # UPnP 1.0; 1.1 has none
    if text:
        base = on_router(text, location.addr.host, location)
    found: dict[str, Service] = {}
    for element in root.walk():
        if element.name != "service":
            continue
        kind, control = element.find("serviceType"), element.find("controlURL")
        if kind in WAN_SERVICES and control is not None and len(found) < MAX_UPNP_SERVICES:
            try:
                url = on_router(control, location.addr.host, base)
            except ValueError:
                continue
            found.setdefault(f"{kind} {url}", Service(kind, url))
    return sorted(found.values(), key=lambda service: WAN_SERVICES.index(service.type))


def _action(service: Service, name: str, arguments: list[tuple[str, str]]) -> bytes:
    # numbers, fixed words and an IPv4 address: nothing that XML would want escaped
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in arguments)
    body = (
        f'<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="{ENVELOPE}" s:encodingStyle="{ENCODING}"><s:Body>'
        f'<u:{name} xmlns:u="{service.type}">{inside}</u:{name}></s:Body></s:Envelope>\r\n'
    ).encode()
    lines = [
        f"POST {service.control.path} HTTP/1.1",
        f"Host: {service.control.addr}",
        'Content-Type: text/xml; charset="utf-8"',
        f"Content-Length: {len(body)}",
        f'SOAPAction: "{service.type}#{name}"',
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get_external_address(service: Service) -> bytes:
    """Return the request for the outside address (answer: ``NewExternalIPAddress``)."""
    return _action(service, "GetExternalIPAddress", [])


def add_mapping(service: Service, external_port: int, host: str, port: int, lease: int, *, any_port: bool) -> bytes:
    """Return the request for a UDP mapping for ``lease`` seconds (0: for ever).

    With ``any_port`` the router may choose another port and says which (answer: ``NewReservedPort``).
    """
    arguments = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", str(external_port)),
        ("NewProtocol", "UDP"),
        ("NewInternalPort", str(port)),
        ("NewInternalClient", host),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "meshnode"),
        ("NewLeaseDuration", str(lease)),
    ]
    return _action(service, "AddAnyPortMapping" if any_port else "AddPortMapping", arguments)


def delete_mapping(service: Service, external_port: int) -> bytes:
    """Return the request that takes a UDP mapping back."""
    arguments = [("NewRemoteHost", ""), ("NewExternalPort", str(external_port)), ("NewProtocol", "UDP")]
    return _action(service, "DeletePortMapping", arguments)


def parse(status: int, document: bytes) -> Answer:
    """Parse what an action's request brought.

    Returns:
        The results, or the UPnP error code: 501 (ActionFailed) where the router gives 0 for one.

    Raises:
        ValueError: It is no XML, or an HTTP error without a UPnP error in it.
    """
    root = xml.parse(document)
    values = {element.name: element.text.strip() for element in root.walk() if not element.children}
    code = values.get("errorCode", "")
    if code.isascii() and code.isdigit() and len(code) <= 4:
        return Answer(values, int(code) or 501)
    if status != 200:
        raise ValueError(f"status {status} without a UPnP error")
    return Answer(values)
