"""A trace of reclaims replayed for real on a cluster of this machine, beside checkpoint and restart, and simulated."""
