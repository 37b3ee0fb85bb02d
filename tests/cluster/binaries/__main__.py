"""Builds what is missing."""

import sys

from tests.cluster.binaries import CannotBuild, bring

try:
    print(bring(*sys.argv[1:]))
except CannotBuild as error:
    sys.exit(f"✗ {error}")
