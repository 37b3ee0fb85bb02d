"""Git by argument list, in an environment where nothing of the host or of a repository can run.

No hooks, no system or user configuration, no credential helpers, no prompts, no ``ext::`` transport; a time limit and an output limit on
every call. Credentials travel only as ``http.extraHeader`` through ``GIT_CONFIG_*`` variables: never in an argument list, never in a URL.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from loopwright_repositories.errors import OutputTooLarge, RepositoryError, RepositoryRefused, RepositoryUnavailable

CONFIG_FILE = Path(__file__).with_name("hardened.gitconfig")
TIMEOUT = timedelta(seconds=60)  # a read of a large repository takes seconds; a fetch is given its own limit
OUTPUT_BYTES_MAX = 16 * 1024 * 1024
STDERR_BYTES_MAX = 64 * 1024
END_SECONDS = 10.0  # a killed process ends at once; beyond it something outside the group holds its pipes, and waiting helps nobody
# What a host needs to reach a remote at all: proxies and certificate authorities. Nothing else of the host's environment is passed on.
_PASSED_ON = ("PATH", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO")
_RETRY_HELPS = re.compile(
    r"could not resolve host|connection (?:refused|reset|timed out)|failed to connect|early eof|unexpected disconnect|"
    r"operation timed out|returned error: (?:429|5\d\d)|cannot lock ref|index\.lock|unable to create .*\.lock|"
    r"the remote end hung up|empty reply from server|rpc failed|resource temporarily unavailable|another git process",
    re.IGNORECASE,
)
_SAYS_NOTHING = frozenset(
    {"fatal: Could not read from remote repository.", "Please make sure you have the correct access rights", "and the repository exists."}
)


@dataclass(frozen=True)
class GitCredential:
    """A token for one remote host, sent as HTTP Basic, as forges expect of git clients."""

    token: SecretStr
    username: str = "loopwright"

    def environment(self, url: str) -> dict[str, str]:
        """The variables that make git send the token to this URL's host and to no other."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return {}
        pair = f"{self.username}:{self.token.get_secret_value()}".encode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{parts.scheme}://{parts.netloc}/.extraHeader",
            "GIT_CONFIG_VALUE_0": "Authorization: Basic " + base64.b64encode(pair).decode(),
        }


@dataclass(frozen=True)
class GitResult:
    """What git said."""

    stdout: bytes
    stderr: str
    exit_code: int

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become the replacement character."""
        return self.stdout.decode("utf-8", "replace")


class GitFailed(RepositoryRefused):
    """Git ended with an exit code that the caller did not expect, and trying again will not help."""

    def __init__(self, message: str, exit_code: int, stderr: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stderr = stderr


def absolute(path: Path) -> str:
    """The path from the root: git runs in a folder of its own choosing."""
    return os.path.abspath(path)


def hardened_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a git process."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment.setdefault("PATH", os.defpath)
    environment.update(
        HOME="/nonexistent",
        XDG_CONFIG_HOME="/nonexistent",
        LC_ALL="C.UTF-8",
        TZ="UTC",
        GIT_CONFIG_NOSYSTEM="1",
        GIT_CONFIG_SYSTEM="/dev/null",
        GIT_CONFIG_GLOBAL=str(CONFIG_FILE),
        GIT_ATTR_NOSYSTEM="1",
        GIT_TERMINAL_PROMPT="0",
        GIT_ASKPASS="/bin/false",
        SSH_ASKPASS="/bin/false",
        GIT_ALLOW_PROTOCOL="file:http:https",
        GIT_OPTIONAL_LOCKS="0",
        GIT_LITERAL_PATHSPECS="1",
        GIT_NO_REPLACE_OBJECTS="1",
        GIT_FLUSH="0",
    )
    if extra:
        environment.update(extra)
    return environment


async def run_git(
    arguments: Sequence[str],
    *,
    git_dir: Path | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    credential: tuple[GitCredential, str] | None = None,
    expected: Sequence[int] = (0,),
    timeout: timedelta = TIMEOUT,
    output_bytes_max: int = OUTPUT_BYTES_MAX,
) -> GitResult:
    """Runs ``git <arguments>`` and gives its output.

    ``git_dir`` names a bare repository; ``cwd`` a work tree. ``credential`` is the token and the URL it is for. Raises OutputTooLarge,
    RepositoryUnavailable (time limit, network, locks) or GitFailed when the exit code is not one of ``expected``. Cancelling the
    task kills git and its children.
    """
    extra = dict(environment or {})
    if credential is not None:
        extra.update(credential[0].environment(credential[1]))
    command = ["git", *(["--git-dir", absolute(git_dir)] if git_dir is not None else []), *arguments]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=hardened_environment(extra),
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise RepositoryRefused(f"cannot start git: {error.filename} is not there; install git, or make the folder {cwd}") from error
    name = " ".join(arguments[:2])[:80]
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            stdout, stderr = await _converse(process, stdin, output_bytes_max, name)
            exit_code = await process.wait()
    except TimeoutError as error:
        raise RepositoryUnavailable(f"git {name} took longer than {timeout.total_seconds():g} s and was stopped") from error
    finally:
        await end_process(process)
    said = stderr.decode("utf-8", "replace").strip()
    if exit_code not in expected:
        raise _failure(name, exit_code, said)
    return GitResult(stdout, said, exit_code)


async def _converse(process: asyncio.subprocess.Process, stdin: bytes | None, output_bytes_max: int, name: str) -> tuple[bytes, bytes]:
    async def feed() -> None:
        if stdin is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await write_to(process.stdin, stdin)
            process.stdin.close()

    async def read_output() -> bytes:
        assert process.stdout is not None
        collected = bytearray()
        while chunk := await process.stdout.read(65_536):
            collected += chunk
            if len(collected) > output_bytes_max:
                raise OutputTooLarge(f"git {name} wrote more than {output_bytes_max} bytes; ask for less or raise the caller's limit")
        return bytes(collected)

    async def read_errors() -> bytes:
        assert process.stderr is not None
        tail = b""
        while chunk := await process.stderr.read(65_536):
            tail = (tail + chunk)[-STDERR_BYTES_MAX:]
        return tail

    output, errors, feeding = asyncio.create_task(read_output()), asyncio.create_task(read_errors()), asyncio.create_task(feed())
    try:
        stdout, stderr, _ = await asyncio.gather(output, errors, feeding)
    finally:
        for task in (output, errors, feeding):
            task.cancel()
        await asyncio.gather(output, errors, feeding, return_exceptions=True)
    return stdout, stderr


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Kills whatever is left of the process group, so that no helper (git-remote-http, pack-objects) outlives the call, and waits for it.

    What it still had to say is read away first: asyncio tells of the end only when the pipes are at theirs, and one whose reader stopped
    because of a limit never is (Python 3.11 and later).
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(_read_away(process.stdout), _read_away(process.stderr), process.wait())


async def write_to(stream: asyncio.StreamWriter, content: bytes) -> None:
    """Writes to a process. Raises BrokenPipeError or ConnectionResetError when it reads no more, on uvloop too, which has its own error."""
    try:
        stream.write(content)
        await stream.drain()
    except RuntimeError as error:
        raise BrokenPipeError("the process closed its input") from error


async def _read_away(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(65_536):
        pass


def _failure(name: str, exit_code: int, stderr: str) -> RepositoryError:
    said = [line.strip() for line in stderr.splitlines() if line.strip() and line.strip() not in _SAYS_NOTHING]
    reason = " / ".join(said[-3:])[:600] or "no message"
    message = f"git {name} ended with {exit_code}: {reason}"
    if _RETRY_HELPS.search(stderr):
        return RepositoryUnavailable(message)
    return GitFailed(message, exit_code, stderr)
