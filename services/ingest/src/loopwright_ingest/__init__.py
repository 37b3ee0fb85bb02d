"""Owns the way in: turns what arrives over HTTP, and what probes find, into durable signals."""
