"""The commands, a module a group. Each loads click at most: what a command needs is imported when it runs."""
