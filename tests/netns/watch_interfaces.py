"""Changes this namespace's addresses and prints how many ms later InterfaceWatcher said so, one JSON line each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

from meshnode.runtime.interfaces import InterfaceWatcher, local_networks

CHANGES = [
    ("addr add 10.77.0.50/24 dev eth0", "10.77.0.50", True),
    ("addr del 10.77.0.50/24 dev eth0", "10.77.0.50", False),
    ("addr add 2001:db8::50/64 dev eth0", "2001:db8::50", True),
    ("addr del 2001:db8::50/64 dev eth0", "2001:db8::50", False),
    ("link set eth0 down", "", False),
    ("link set eth0 up", "10.77.0.10", True),
    ("route add default via 10.77.0.1", "10.77.0.10", True),
    ("rule add priority 77 lookup 77", "10.77.0.10", True),
    ("rule del priority 77", "10.77.0.10", True),
]
QUIET_S = 0.2


def is_right(address: str, there: bool) -> bool:
    """Return whether the system says that it has the address, or has it no longer."""
    return not address or (address in [host for host, _ in local_networks()]) == there


async def main() -> None:
    """Make each change three times over, with quiet between them."""
    seen = asyncio.Event()
    watcher = InterfaceWatcher(asyncio.get_running_loop(), seen.set)
    watcher.start()
    with subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, bufsize=0) as ip:
        assert ip.stdin is not None
        for _ in range(3):
            for line, address, there in CHANGES:
                await asyncio.sleep(QUIET_S)
                seen.clear()
                started = time.monotonic()
                ip.stdin.write(line.encode() + b"\n")
                async with asyncio.timeout(5):
                    await seen.wait()
                    while not is_right(address, there):  # it was told of another, as of an address that is checked
                        seen.clear()
                        await seen.wait()
                ms = (time.monotonic() - started) * 1000
                print(json.dumps({"change": line, "ms": round(ms, 2)}), flush=True)
            ip.stdin.write(b"route del default\n")
        ip.stdin.close()
    watcher.close()


asyncio.run(main())
