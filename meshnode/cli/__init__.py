"""The ``meshnode`` command. ``main`` and ``output`` are its light front; commands load what they need."""
