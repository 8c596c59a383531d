"""Simulation of a run on a cluster whose capacity a trace describes: the real coordinator under a clock of its own."""
