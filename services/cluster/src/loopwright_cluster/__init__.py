"""Owns the grouping: decides which report each signal belongs to, and says why."""
