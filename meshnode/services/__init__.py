"""Services for programs as they are: expose a local target, forward a local listener."""
