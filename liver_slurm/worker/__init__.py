"""The training process: trains in one world, prepares the next meanwhile, and goes over to it."""
