"""Word lists, one file each: the first line says what is in it."""

from __future__ import annotations

from importlib.resources import files


def words(name: str) -> frozenset[str]:
    """The words of the list `name`. Raises FileNotFoundError when there is none."""
    text = (files(__name__) / f"{name}.txt").read_text("utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
