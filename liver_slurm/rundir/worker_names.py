"""Names of workers: who made them, and how to take them apart. The only module that knows the syntax."""

from __future__ import annotations


def live_names(job_id: str) -> str:
    """First part of the names of a successor's workers, as its batch script gives them."""
    return f"live-{job_id}"
