"""The same measurements on what others have: TCP, TLS, aioquic's asyncio API, iroh, py-libp2p, HyperDHT, and this mesh.

``run`` measures, ``table`` and ``chart`` show. Each peer is one program that speaks ``harness``'s protocol on its
standard input and output, in its own process and, where it is a package of its own, its own environment.
"""
