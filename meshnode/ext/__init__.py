"""Adapters: libraries for HTTP, RPC, agents and databases over mesh streams, one module a library.

Each needs its extra (``pip install 'meshnode[httpx]'``), and stands on hooks that its library documents. Nothing else
of this package imports them, and ``import meshnode`` loads none.
"""
