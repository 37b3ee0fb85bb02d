"""Work folders for the sandbox, each written anew from git: never patched after foreign code ran in it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from loopwright_repositories.checkout import Checkout
from loopwright_repositories.git import run_git


@asynccontextmanager
async def workspace(root: Path, checkout: Checkout, base: str, diff: str = "") -> AsyncIterator[Path]:
    """A folder with the files of ``base``, and of ``diff`` applied to it where one is given; gone afterwards.

    The diff is applied to an index, and the files are written from that: nothing in the folder takes part. Raises GitFailed when it does
    not apply.
    """
    await asyncio.to_thread(root.mkdir, parents=True, exist_ok=True)
    # Another user may have to pass: the sandbox's. What is inside is public to this host's users for as long as it is there.
    await asyncio.to_thread(root.chmod, 0o711)
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="work-", dir=root))
    try:
        await asyncio.to_thread(folder.chmod, 0o711)
        target = folder / "files"
        await asyncio.to_thread(target.mkdir)
        async with checkout.borrowed(base, "main") as directory:
            environment = {"GIT_INDEX_FILE": str((folder / "index").absolute()), "GIT_WORK_TREE": str(target.absolute())}
            await run_git(["read-tree", base], git_dir=directory, cwd=target, environment=environment)
            if diff:
                apply = ["apply", "--cached", "--whitespace=nowarn", "-"]
                await run_git(apply, git_dir=directory, cwd=target, environment=environment, stdin=diff.encode() + b"\n")
            await run_git(["checkout-index", "--all", "--quiet"], git_dir=directory, cwd=target, environment=environment)
        yield target.absolute()
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
