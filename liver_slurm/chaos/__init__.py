"""Chaos for staging clusters: faults at a rate, from a seed, at processes that are proven to be the run's."""
