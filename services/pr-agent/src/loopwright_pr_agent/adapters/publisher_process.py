"""The Publisher port by a child process per job, which alone reads the tokens that write. This process only names their files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from loopwright_common import telemetry
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_repositories.errors import ForgeConflict, ForgeNotFound, ForgeRefused, ForgeUnavailable
from pydantic import ValidationError

from loopwright_pr_agent.policy import DiffLimits
from loopwright_pr_agent.ports import Publication, PullRequestSeen
from loopwright_pr_agent.publisher import Job, Result

JOB_SECONDS_MAX = 120.0  # a push and a dozen requests take seconds
ENSURE_SECONDS_MAX = 700.0  # an import clones; the forge's own limit is ten minutes
_PASSED_ON = ("PATH", "LANG", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class PublisherProcess:
    """Starts ``python -m loopwright_pr_agent.publisher`` for each job."""

    forge_url: str
    write_token_file: Path | None
    merge_token_file: Path | None
    limits: DiffLimits

    async def ensure(self, repository: RepositoryConfig) -> None:
        job = self._job("ensure", repository.name, source=repository.source, default_branch=repository.default_branch)
        await self._run(job, ENSURE_SECONDS_MAX)

    async def publish(self, publication: Publication) -> PullRequestSeen:
        change = publication.change
        job = self._job(
            "publish",
            change.repository,
            change=change,
            branch=publication.branch,
            default_branch=publication.base_branch,
            mirror=publication.mirror,
            committed_at=publication.committed_at,
            transcript=publication.transcript,
            protected_paths=publication.protected_paths,
        )
        return _pull_request(await self._run(job))

    async def merge(self, repository: str, number: int, *, expected_head: str, name: str, email: str, key: str) -> PullRequestSeen:
        job = self._job("merge", repository, number=number, expected_head=expected_head, name=name, email=email, key=key)
        return _pull_request(await self._run(job))

    async def close(self, repository: str, number: int, *, actor: str, comment: str, key: str) -> PullRequestSeen:
        return _pull_request(await self._run(self._job("close", repository, number=number, actor=actor, body=comment, key=key)))

    async def comment(self, repository: str, number: int, *, actor: str, body: str, key: str) -> None:
        await self._run(self._job("comment", repository, number=number, actor=actor, body=body, key=key))

    def _job(self, action: str, repository: str, **fields: object) -> Job:
        return Job.model_validate(
            {
                "action": action,
                "forge_url": self.forge_url,
                "write_token_file": str(self.write_token_file.absolute()) if self.write_token_file else "",
                "merge_token_file": str(self.merge_token_file.absolute()) if self.merge_token_file else "",
                "repository": repository,
                "diff_bytes_max": self.limits.bytes_max,
                "diff_files_max": self.limits.files_max,
                **fields,
            }
        )

    async def _run(self, job: Job, seconds_max: float = JOB_SECONDS_MAX) -> Result:
        # The span is ours: the process that holds the tokens talks to the forge and to nobody else.
        with telemetry.span(f"publisher {job.action}"):
            return await self._run_once(job, seconds_max)

    async def _run_once(self, job: Job, seconds_max: float) -> Result:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loopwright_pr_agent.publisher",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(seconds_max):
                said, complained = await process.communicate(job.model_dump_json().encode())
        except TimeoutError as error:
            raise ForgeUnavailable(f"the publisher did not {job.action} within {seconds_max:g} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 2:
            raise ForgeRefused(f"the publisher refused the job: {complained.decode('utf-8', 'replace')[-500:]}")
        try:
            result = Result.model_validate_json(said)
        except ValidationError as error:
            tail = complained.decode("utf-8", "replace").strip()[-300:]
            raise ForgeUnavailable(f"the publisher ended with {process.returncode} before an answer: {tail}") from error
        if not result.ok:
            kinds = {"conflict": ForgeConflict, "not_found": ForgeNotFound, "unavailable": ForgeUnavailable}
            raise kinds.get(result.kind, ForgeRefused)(result.reason)
        return result


def _pull_request(result: Result) -> PullRequestSeen:
    if result.seen is None:
        raise ForgeUnavailable("the publisher answered without a pull request")
    return result.seen
