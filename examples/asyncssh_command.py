"""A command by asyncssh on another node, without an open port; ssh's own keys hold inside of the mesh's.

    pip install 'meshnode[asyncssh]'
    python examples/asyncssh_command.py

prints

    uptime: 1 2 3
"""

from __future__ import annotations

import asyncio

import asyncssh
from nodes import two_nodes

from meshnode.ext.asyncssh import MeshTunnel


class Server(asyncssh.SSHServer):
    """A server that asks for no password: the mesh lets only the allowed node come this far."""

    def begin_auth(self, username: str) -> bool:
        """Ask for nothing more."""
        return False


async def process(process: asyncssh.SSHServerProcess[str]) -> None:
    """Answer a command slowly."""
    process.stdout.write(f"{process.command}:")
    for number in (1, 2, 3):
        await asyncio.sleep(0.2)
        process.stdout.write(f" {number}")
    process.exit(0)


async def main() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    options = {"server_factory": Server, "server_host_keys": [key], "process_factory": process}
    async with two_nodes() as (server, client):
        await asyncssh.listen("ssh", tunnel=MeshTunnel(server, allow=[client.id]), **options)
        known = ([key.convert_to_public()], [], [])
        connection = await asyncssh.connect("server.mesh", tunnel=MeshTunnel(client), known_hosts=known, config=None)
        async with connection:
            running = asyncio.create_task(connection.run("uptime"))
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            print((await running).stdout)


asyncio.run(main())
