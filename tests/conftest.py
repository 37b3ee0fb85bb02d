"""Fixtures for all tests; see ``loopwright_common.testing.fixtures``."""

from hypothesis import settings

pytest_plugins = ["loopwright_common.testing.fixtures"]

# A busy machine is slow, and that is no failure: how long an example takes is for bench/.
settings.register_profile("loopwright", deadline=None)
settings.load_profile("loopwright")
