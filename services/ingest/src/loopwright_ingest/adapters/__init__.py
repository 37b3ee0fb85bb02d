"""How probes reach the world."""
