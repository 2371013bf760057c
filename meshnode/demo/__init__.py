"""The demo: a mesh of real processes, and a TCP connection that lives through every kind of move."""
