"""The process that watches the scheduler, decides, and runs the two-phase commit; it is not on the training path."""
