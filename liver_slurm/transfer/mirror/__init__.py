"""Mirrors: a rank's state, kept current in another rank's host memory, for the case that the first one dies."""
