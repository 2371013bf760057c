"""Services for TCP programs: expose a local target, forward a local listener."""
