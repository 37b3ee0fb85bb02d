"""Lays down the shop's git history, commit by commit: a base, then one patch after the other, with their authors and times.

    python examples/shop/history.py TARGET [--now 2026-11-26T10:00:00+00:00]

Prints the commits as JSON lines, oldest first. The same ``--now`` gives the same commits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from email.utils import parseaddr
from pathlib import Path

HERE = Path(__file__).resolve().parent
AUTHOR = "Ines Duarte <ines@shop.example>"
# Hours before now, one per commit. The base is old; what went out with the newest release is days old.
AGES_HOURS = (960, 504, 336, 216, 120, 46, 38, 27, 6)
FIRST_RELEASE = 4  # the number of the newest commit that the shop runs before the demo begins


def git(folder: Path, *arguments: str, when: datetime | None = None, author: str = AUTHOR) -> str:
    name, mail = parseaddr(author)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": mail,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": mail,
    }
    if when is not None:
        environment["GIT_AUTHOR_DATE"] = environment["GIT_COMMITTER_DATE"] = when.isoformat(timespec="seconds")
    done = subprocess.run(["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def lay_down(target: Path, now: datetime) -> list[dict[str, str]]:
    """Makes the repository ``target``, with ``main`` checked out. Returns its commits, oldest first."""
    target.mkdir(parents=True)
    git(target, "init", "--quiet", "--initial-branch=main", ".")
    shutil.copytree(HERE / "base", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    commits = [_commit(target, AUTHOR, "A small shop: catalogue, prices, checkout", "", now - timedelta(hours=AGES_HOURS[0]))]
    for age, patch in zip(AGES_HOURS[1:], sorted((HERE / "history").glob("*.patch")), strict=True):
        author, subject, body = _read(patch)
        git(target, "apply", "--index", str(patch))
        commits.append(_commit(target, author, subject, body, now - timedelta(hours=age)))
    return commits


def _commit(target: Path, author: str, subject: str, body: str, when: datetime) -> dict[str, str]:
    git(target, "add", "--all")
    git(target, "commit", "--quiet", "--message", f"{subject}\n\n{body}".strip(), when=when, author=author)
    return {"commit": git(target, "rev-parse", "HEAD"), "subject": subject, "author": author}


def _read(patch: Path) -> tuple[str, str, str]:
    """(author, subject, body) of a patch in git's mail format."""
    head, _, rest = patch.read_text(encoding="utf-8").partition("\n\n")
    from email import message_from_string
    from email.header import decode_header, make_header

    message = message_from_string(head)
    author = str(make_header(decode_header(message["From"])))
    subject = str(make_header(decode_header(message["Subject"]))).replace("\n", "").removeprefix("[PATCH] ")
    return author, subject, rest.partition("\n---\n")[0].strip()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("target", type=Path)
    options.add_argument("--now", type=datetime.fromisoformat, default=datetime.now(UTC))
    given = options.parse_args()
    for number, commit in enumerate(lay_down(given.target, given.now)):
        print(json.dumps({"number": number, "first_release": number == FIRST_RELEASE, **commit}))


if __name__ == "__main__":
    main()
