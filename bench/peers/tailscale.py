"""tailscale-py, which needs a control server: its makers' or one that must be run (headscale)."""

from __future__ import annotations

import tailscale

from bench.peers import harness


class Tailscale(harness.Peer):
    """A device of a tailnet."""

    def serve(self, host: str, handler: harness.Handler) -> harness.Serving:
        """Nothing: without a control server there is neither an address nor a peer."""
        version = getattr(tailscale, "__version__", "")
        raise harness.NotOfferedError(
            f"tailscale-py {version} needs a control server for every address and key".strip()
        )


if __name__ == "__main__":
    harness.main(Tailscale())
