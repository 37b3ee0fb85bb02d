"""The instructions a model gets, one Markdown file each, so that they are reviewed like code."""

from __future__ import annotations

from importlib.resources import files


def load(name: str) -> str:
    """The text of ``<name>.md``."""
    return (files(__name__) / f"{name}.md").read_text(encoding="utf-8")
