"""The long-running process of one home, and how other commands talk to it."""
