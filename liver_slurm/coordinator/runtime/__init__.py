"""What the coordinator does: sockets, journal, clock, threads that ask the scheduler, and who may act."""
