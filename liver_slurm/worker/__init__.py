"""The training process: trains in one world, prepares the next beside it, and goes over to it."""
