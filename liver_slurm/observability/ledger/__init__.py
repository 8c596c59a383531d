"""The ledger of a run: every second of every device, by cause, folded from the run's files. Reads only."""
