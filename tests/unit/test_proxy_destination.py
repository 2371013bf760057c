"""Hosts and ports of the proxy's clients."""

from __future__ import annotations

import pytest

from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.services.proxy.destination import Destination, NotInMesh, destination
from meshnode.services.proxy.overlay import OverlayNames

ID = NodeId(bytes(range(32)))
TOLD = OverlayNames(bytes(32))


@pytest.mark.parametrize(
    ("host", "port", "node", "services"),
    [
        ("web.laptop.mesh", 1234, "laptop", ("web",)),
        ("web.laptop.mesh.", 1234, "laptop", ("web",)),
        ("Web.Laptop.MESH", 1234, "laptop", ("web",)),
        ("v2.web.laptop.mesh", 80, "laptop", ("v2.web",)),
        (f"web.{ID}.mesh", 80, ID, ("web",)),
        (f"{str(ID).upper()}.mesh", 8080, ID, ("8080",)),
        ("laptop.mesh", 80, "laptop", ("80", "http", "web")),
        ("laptop.mesh", 22, "laptop", ("22", "ssh")),
    ],
)
def test_a_host_names_a_node_and_it_or_the_port_the_service(
    host: str, port: int, node: NodeId | str, services: tuple[str, ...]
) -> None:
    assert destination(host, port, TOLD) == Destination(node, services)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "::1", "example.org", "laptop", "mesh", "laptop.mesh.evil.example", "laptopmesh", ""],
)
def test_other_hosts_are_none_of_the_mesh(host: str) -> None:
    with pytest.raises(NotInMesh):
        destination(host, 80, TOLD)


@pytest.mark.parametrize("host", [".mesh", "..mesh", "web..mesh", "lap_top.mesh", ".laptop.mesh", "a\nb.c.mesh"])
def test_a_host_that_means_no_node_or_service_is_an_error(host: str) -> None:
    with pytest.raises(InvalidId):
        destination(host, 80, TOLD)


def test_a_host_that_is_longer_than_any_name_is_refused() -> None:
    with pytest.raises(NotInMesh):
        destination("a" * 300 + ".mesh", 80, TOLD)
