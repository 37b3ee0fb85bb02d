"""Benchmarks: each prints a ratio against something measured in the same run, never a bare time that depends on the machine."""
