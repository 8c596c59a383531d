"""A trace of reclaims replayed for real on a cluster of this machine, and by checkpoint and restart, and simulated."""
