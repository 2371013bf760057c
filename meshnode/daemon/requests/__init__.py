"""The requests of the control socket with their handlers, a module a command group."""
