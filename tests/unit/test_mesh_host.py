"""Host names of services under ``.mesh``."""

from __future__ import annotations

import pytest

from meshnode import InvalidId, NodeId
from meshnode.identity.mesh_host import parse_host

ID = NodeId(bytes(range(32)))


@pytest.mark.parametrize(
    ("host", "service", "node"),
    [
        ("laptop.mesh", "", "laptop"),
        ("web.laptop.mesh", "web", "laptop"),
        ("Web.LAPTOP.mesh.", "web", "laptop"),
        ("a.b.laptop.mesh", "a.b", "laptop"),
        ("my_web.laptop.mesh", "my_web", "laptop"),
        (f"{ID}.mesh", "", ID),
        (f"web.{str(ID).upper()}.mesh", "web", ID),
    ],
)
def test_the_last_label_is_the_node_and_what_is_before_it_the_service(
    host: str, service: str, node: NodeId | str
) -> None:
    assert parse_host(host) == (service, node)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "mesh",
        ".mesh",
        "laptop",
        "web.laptop",
        "laptop.mesh.org",
        "laptop.mesh..",
        ".laptop.mesh",
        "a..laptop.mesh",
        "web..mesh",
        "web.-x.mesh",
        "web.lap top.mesh",
        "w\0b.laptop.mesh",
        "w\r\nb.laptop.mesh",
        f"web.{ID}x.mesh",
        "127.0.0.1",
        "::1",
    ],
)
def test_what_is_no_host_of_the_mesh_is_refused(host: str) -> None:
    with pytest.raises(InvalidId):
        parse_host(host)
