"""Fixtures for all tests; see ``loopwright_common.testing.fixtures``."""

pytest_plugins = ["loopwright_common.testing.fixtures"]
