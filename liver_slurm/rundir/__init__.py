"""The run directory: where its files lie, what is in each of them, and how a run is found again."""
