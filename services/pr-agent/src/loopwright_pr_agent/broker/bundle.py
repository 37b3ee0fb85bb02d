"""A run's input as one tar: ``request.json``, ``inputs/*``, ``workspace/**``. The same input gives the same bytes, whenever it is made."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from loopwright_common.errors import Permanent

from loopwright_pr_agent.broker.records import DIFF_BYTES_MAX
from loopwright_pr_agent.sandbox import seccomp
from loopwright_pr_agent.sandbox.pod_runner import MEMBERS_MAX, stays_inside
from loopwright_pr_agent.sandbox.port import RunRequest

REQUEST_BYTES_MAX = 3 * 1024**2  # below what the runner takes


class BundleTooLarge(Permanent):
    """The repository's files are more than a Job is handed."""


@dataclass(frozen=True)
class Bundle:
    """``digest`` names its content; ``left_out``: links that lead out of the repository, which nothing inside could follow."""

    path: Path
    digest: str
    left_out: tuple[str, ...]


def write_bundle(request: RunRequest, path: Path, *, bytes_max: int, processes_of_user: int, model_seconds: float) -> Bundle:
    """Writes the input of ``request`` to ``path``. Blocking. Raises BundleTooLarge, OSError."""
    left_out: list[str] = []
    with path.open("wb") as file:
        counted = _Counted(file, bytes_max)
        with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as bundle:
            _add(bundle, "request.json", _request(request, processes_of_user, model_seconds))
            for item in sorted(request.inputs, key=lambda item: item.name):
                if "/" in item.name or item.name.startswith("."):
                    raise ValueError(f"{item.name!r} is not a plain file name")
                _add(bundle, f"inputs/{item.name}", item.content)
            for count, (name, entry) in enumerate(_tree(request.workspace, "")):
                if count >= MEMBERS_MAX - 1_000:
                    raise BundleTooLarge(f"the repository has more than {count} files")
                if not _add_entry(bundle, name, entry):
                    left_out.append(name)
    return Bundle(path, counted.digest.hexdigest(), tuple(left_out))


def _request(request: RunRequest, processes_of_user: int, model_seconds: float) -> bytes:
    filters = {machine: base64.b64encode(seccomp.assemble(seccomp.common_rules(), machine)).decode() for machine in seccomp.ARCHITECTURES}
    content = {
        "argv": list(request.argv),
        "before": [[list(argv), exit_code] for argv, exit_code in request.before],
        "environment": dict(request.environment),
        "inputs": {item.variable: item.name for item in request.inputs},
        "limits": {**asdict(request.limits), "processes_of_user": processes_of_user},
        "seccomp": filters,
        "model": request.model,
        "model_seconds": model_seconds,
        "diff": request.diff,
        "diff_bytes_max": DIFF_BYTES_MAX,
    }
    encoded = json.dumps(content, sort_keys=True).encode()
    if len(encoded) > REQUEST_BYTES_MAX:
        raise BundleTooLarge(f"the command with its environment is {len(encoded)} bytes; {REQUEST_BYTES_MAX} are taken")
    return encoded


def _tree(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        yield name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _tree(Path(entry.path), f"{name}/")


def _add_entry(bundle: tarfile.TarFile, name: str, entry: os.DirEntry[str]) -> bool:
    """False for what is left out."""
    status = entry.stat(follow_symlinks=False)
    info = tarfile.TarInfo(f"workspace/{name}")
    if stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        bundle.addfile(info)
    elif stat.S_ISREG(status.st_mode):
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            info.size, info.mode = os.fstat(descriptor).st_size, 0o755 if status.st_mode & 0o100 else 0o644
            bundle.addfile(info, file)
    elif stat.S_ISLNK(status.st_mode) and stays_inside(name, os.readlink(entry.path)):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry.path)
        bundle.addfile(info)
    else:
        return False
    return True


def _add(bundle: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    bundle.addfile(info, io.BytesIO(content))


class _Counted(io.RawIOBase):
    """Writes through, counts and digests."""

    def __init__(self, file: IO[bytes], bytes_max: int) -> None:
        self._file, self._bytes_max, self._written = file, bytes_max, 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile hands over bytes
        self._written += len(data)
        if self._written > self._bytes_max:
            raise BundleTooLarge(f"the repository's files are over {self._bytes_max} bytes (LOOPWRIGHT_PR_AGENT_SANDBOX_BUNDLE_BYTES_MAX)")
        self.digest.update(data)
        return self._file.write(data)
