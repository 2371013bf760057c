"""Neighbours and failure detection: HyParView, SWIM, accusations, reputation."""
