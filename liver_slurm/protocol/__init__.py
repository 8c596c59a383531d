"""The control channel: every message, and the encrypted connection between coordinator, workers and clients."""
