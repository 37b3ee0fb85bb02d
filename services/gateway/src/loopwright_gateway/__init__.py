"""Owns the report's life: the state a person reads, acts on, and is metered by."""
