"""The ports' adapters."""
