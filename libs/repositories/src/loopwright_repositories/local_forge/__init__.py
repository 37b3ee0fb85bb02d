"""The ``local`` forge: bare repositories over real git HTTP, with pull requests, checks, comments and merges of its own."""
