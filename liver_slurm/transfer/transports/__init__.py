"""What carries bytes between two workers: shared memory, TCP, gloo, NCCL or UCX, behind one interface."""
