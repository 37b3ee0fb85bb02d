"""From a request to a proven change: repository, strategy, policy, proof. No effect outside this service's own folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopwright_common.contracts.changes import ChangeRequested, SandboxRun
from loopwright_common.contracts.configuration import ProjectConfig, RepositoryConfig
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import ManifestInvalid
from loopwright_repositories.manifest import FoundManifest, read_manifest

from loopwright_pr_agent.domain import NoSafeChange, Proposal, Verified
from loopwright_pr_agent.policy import DiffLimits, check_diff
from loopwright_pr_agent.ports import Repositories, Strategy
from loopwright_pr_agent.sandbox.port import Limits, Sandbox
from loopwright_pr_agent.verification import Tell, Verification, check_it_applies


@dataclass(frozen=True)
class Made:
    """A change that may be published."""

    proposal: Proposal
    verified: Verified
    files: tuple[str, ...]
    protected: tuple[str, ...]


@dataclass(frozen=True)
class Workshop:
    """Where changes are made. ``sandbox`` is called for each change: it raises NoSandbox where none holds."""

    repositories: Repositories
    strategy: Strategy
    sandbox: Callable[[], Sandbox]
    work_dir: Path
    toolchains: tuple[Path, ...]
    limits: Limits
    diff_limits: DiffLimits
    protected_paths: tuple[str, ...]

    async def make(self, request: ChangeRequested, repository: RepositoryConfig, tell: Tell, runs: list[SandboxRun]) -> Made:
        """The change, proven as far as it can be. ``runs`` collects what was run, also when it fails.

        Raises NoSafeChange, NoSandbox, RepositoryUnavailable, SandboxBroken.
        """
        sandbox = self.sandbox()
        checkout = await self.repositories.fresh(repository)
        try:
            base = (await checkout.branches())[repository.default_branch]
        except KeyError as error:
            raise NoSafeChange(
                f"{repository.name} has no branch {repository.default_branch}.", "Which branch should changes go to?"
            ) from error
        await tell("exported", f"{repository.name} at {base[:12]}")
        found = await self._manifest(checkout, base)
        proposal = await self.strategy.propose(request, checkout, base)
        await tell("proposed", proposal.title)
        protected = (*repository.protected_paths, *found.manifest.protected_paths, *self.protected_paths)
        checked = check_diff(proposal.diff, self.diff_limits, protected)
        if checked.faults:
            raise NoSafeChange(
                f"The {proposal.strategy} is not allowed: {'; '.join(checked.faults)}.", "Could somebody make this change by hand?"
            )
        verification = Verification(
            sandbox, checkout, proposal, found, request.report.examples, self.work_dir, self.toolchains, self.limits, tell, runs,
            project=request.project, change_id=request.change_id,
        )  # fmt: skip
        await check_it_applies(verification)
        verified = await verification.prove()
        return Made(proposal, verified, checked.files, protected)

    @staticmethod
    async def _manifest(checkout: Checkout, base: str) -> FoundManifest:
        try:
            return await read_manifest(checkout, base)
        except ManifestInvalid as error:
            raise NoSafeChange(f"The repository's manifest cannot be read: {error}", "Could somebody correct .loopwright.yaml?") from error


def repository_of(config: ProjectConfig, request: ChangeRequested) -> RepositoryConfig:
    """The repository the investigation names. Raises NoSafeChange when it names none, or one that is not configured."""
    wanted = request.investigation.repository
    for repository in config.repositories:
        if repository.name == wanted:
            return repository
    known = ", ".join(repository.name for repository in config.repositories) or "none"
    raise NoSafeChange(
        f"The investigation names {f'the repository {wanted}' if wanted else 'no repository'}; configured are: {known}.",
        "Which repository holds the code of this service? Add it with loopwright apply.",
    )


def service_of(request: ChangeRequested) -> str:
    """The service whose deploy will be waited for; empty: any of the repository's."""
    if request.investigation.metric is not None and request.investigation.metric.service:
        return request.investigation.metric.service
    return request.report.services[0] if len(request.report.services) == 1 else ""
