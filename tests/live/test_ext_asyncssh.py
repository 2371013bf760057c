"""asyncssh over mesh streams, by its tunnels."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh
import pytest

import meshnode
from meshnode.ext.asyncssh import MeshTunnel
from tests.conftest import MakeNode
from tests.live.ext_mesh import LINES, PAUSE_S, Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


async def process(process: asyncssh.SSHServerProcess[str]) -> None:
    """Print the caller, then lines, slowly."""
    process.stdout.write(f"{process.get_extra_info('peername')[0]}\n")
    for number in range(LINES):
        process.stdout.write(f"{number}\n")
        await asyncio.sleep(PAUSE_S)
    process.exit(7)


class Open(asyncssh.SSHServer):
    """Lets every user in: the mesh's policy and ssh's keys are apart."""

    def begin_auth(self, username: str) -> bool:
        return False


async def listen(nodes: Pair, key: Any, **allow: Any) -> asyncssh.SSHAcceptor:
    tunnel: Any = MeshTunnel(nodes.there, **allow)
    return await asyncssh.listen(
        "ssh", tunnel=tunnel, server_factory=Open, server_host_keys=[key], process_factory=process
    )


async def test_a_command_goes_on_while_both_ends_move(nodes: Pair) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    tunnel: Any = MeshTunnel(nodes.here)
    known = ([key.convert_to_public()], [], [])
    async with (
        await listen(nodes, key, allow=[nodes.here.id]),
        asyncssh.connect("there.mesh", tunnel=tunnel, known_hosts=known, config=None) as connection,
        nodes.moving(),
    ):
        done = await connection.run("count")
    assert (done.exit_status, str(done.stdout).split()) == (7, [str(nodes.here.id), *map(str, range(LINES))])
    with pytest.raises(meshnode.ServiceNotFound):
        await nodes.here.open("there", "ssh")


async def test_sshs_own_check_of_the_host_key_holds(nodes: Pair) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    tunnel: Any = MeshTunnel(nodes.here)
    async with await listen(nodes, asyncssh.generate_private_key("ssh-ed25519"), allow="any"):
        with pytest.raises(asyncssh.HostKeyNotVerifiable):
            known = ([other.convert_to_public()], [], [])
            await asyncssh.connect("ssh.there.mesh", tunnel=tunnel, known_hosts=known, config=None)


async def test_a_node_that_is_not_allowed_meets_no_ssh(nodes: Pair) -> None:
    tunnel: Any = MeshTunnel(nodes.here)
    async with await listen(nodes, asyncssh.generate_private_key("ssh-ed25519")):
        with pytest.raises(meshnode.PolicyDenied):
            await asyncssh.connect("there.mesh", tunnel=tunnel, known_hosts=None, config=None)
