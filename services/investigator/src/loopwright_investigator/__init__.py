"""Owns the investigation: is a report real, how urgent is it, what caused it, is there a concrete change."""
