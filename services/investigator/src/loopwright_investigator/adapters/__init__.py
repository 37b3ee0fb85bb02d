"""The ports' adapters; only ``app`` imports them."""
