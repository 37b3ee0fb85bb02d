"""Owns the making of changes: sandboxed, verified, published as a pull request."""
