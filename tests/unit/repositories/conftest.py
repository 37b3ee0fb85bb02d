"""Repositories that tests lay down commit by commit, with real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


class Laid:
    """A work tree one writes into and commits, at times that rise by a minute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._minute = 0
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        at = f"2026-03-01T10:{self._minute:02d}:00+00:00"
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.path.parent), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_AUTHOR_DATE": at,
            "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org", "GIT_COMMITTER_DATE": at,
        }  # fmt: skip
        done = subprocess.run(["git", *arguments], cwd=self.path, env=environment, check=True, capture_output=True, timeout=30)
        return done.stdout.decode().strip()

    def commit(self, message: str, files: dict[str, str | bytes | None] | None = None) -> str:
        """Writes the files (None removes one) and commits; gives the commit."""
        for name, content in (files or {}).items():
            target = self.path / name
            if content is None:
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self._minute += 1
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def laid(tmp_path: Path) -> Laid:
    return Laid(tmp_path / "laid")
