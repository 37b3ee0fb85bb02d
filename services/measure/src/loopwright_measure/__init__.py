"""Owns the verdict: did the metric a change targeted move once it was deployed."""
