"""Programs that use the running node of a home, over its control socket, and are none of their own."""
