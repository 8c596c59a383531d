"""The report of a run: one HTML file that needs no network, a picture, and a trace for Perfetto."""
