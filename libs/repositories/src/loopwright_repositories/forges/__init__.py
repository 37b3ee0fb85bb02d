"""Forges: where repositories and pull requests live. One port, one adapter per forge."""
