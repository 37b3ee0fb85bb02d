"""How far a proposal can be proven: replay the failure before and after, run the tests after, then all of it once more from nothing.

A replay says 1 when the failure happened again, 0 when it did not; anything else means that it could not be replayed
(libs/repositories, ``manifest.py``).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loopwright_common import telemetry
from loopwright_common.contracts.changes import ProofLevel, SandboxRun
from loopwright_common.contracts.signals import Signal
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.git import GitFailed
from loopwright_repositories.manifest import FoundManifest
from prometheus_client import Counter, Histogram

from loopwright_pr_agent.domain import TAIL_CHARACTERS_MAX, NoSafeChange, Proposal, Verified, printable, shorten
from loopwright_pr_agent.sandbox.port import InputFile, Limits, RunKey, RunRequest, RunResult, Sandbox, SandboxBroken
from loopwright_pr_agent.workspaces import workspace

# ``exited`` is a run that came to its end, whatever its command said; ``broken`` one that could not be set up.
RUNS = Counter("loopwright_sandbox_runs", "Sandbox runs by isolation and outcome.", ["isolation", "outcome"])
RUN_SECONDS = Histogram(
    "loopwright_sandbox_run_seconds",
    "Wall time of a sandbox run.",
    ["isolation"],
    buckets=(0.1, 0.5, 2, 5, 15, 30, 60, 120, 300, 600, 1_800),
)

Tell = Callable[[str, str], Awaitable[None]]
Trail = tuple[tuple[tuple[str, ...], int], ...]  # commands with the exit code they had
REPRODUCED, NOT_REPRODUCED = 1, 0


@dataclass
class Verification:
    """One proposal under proof. ``runs`` grows as it goes, also when it ends with NoSafeChange."""

    sandbox: Sandbox
    checkout: Checkout
    proposal: Proposal
    found: FoundManifest
    signals: Sequence[Signal]
    root: Path
    toolchains: tuple[Path, ...]
    limits: Limits
    tell: Tell
    runs: list[SandboxRun] = field(default_factory=list)
    facts: tuple[str, ...] = ()
    project: str = ""
    change_id: str = ""
    _set_up: dict[Path, Trail] = field(default_factory=dict)  # what was run in a folder before all else

    async def prove(self) -> Verified:
        """Proves twice, in sandboxes and folders of their own. Raises NoSafeChange, SandboxBroken."""
        first = await self._pass("")
        await self.tell("verifying", "A second, fresh sandbox repeats it from a clean export and the diff.")
        second = await self._pass("verify.")
        if (first.proof, first.tests_passed) != (second.proof, second.tests_passed):
            raise self._unsafe(
                f"The proof does not repeat: first {first.proof.value} ({first.reason}) then {second.proof.value} ({second.reason}).",
                "Are the tests or the replay flaky? What would make them steady?",
            )
        return replace(second, runs=tuple(self.runs), facts=self.facts)

    async def _pass(self, prefix: str) -> Verified:
        manifest = self.found.manifest
        replayable, not_replayable = False, "The repository says no way to replay a failure ('reproduce' in .loopwright.yaml)."
        if manifest.reproduce and not self.signals:
            not_replayable = "The report holds no example signal to replay."
        elif manifest.reproduce:
            replayable, not_replayable = await self._baseline(prefix)
        async with workspace(self.root, self.checkout, self.proposal.base_commit, self.proposal.diff) as folder:
            if failed := await self._setup(f"{prefix}changed.setup", folder):
                await self.tell("setup failed", f"{failed.step}: {failed.command}")
            if replayable:
                await self._replay_after(prefix, folder)
            tests_passed = await self._tests(prefix, folder)
        isolation = self.runs[-1].isolation if self.runs else self.sandbox.isolation
        if replayable and tests_passed:
            reason = "The failure was replayed: it fails before the change and passes after it. The repository's tests pass."
            return Verified(ProofLevel.REPRODUCED, reason, (), True, isolation)
        if replayable and tests_passed is None:
            reason = "The failure was replayed: it fails before the change and passes after it. There are no tests to run."
            return Verified(ProofLevel.REPRODUCED, reason, (), None, isolation)
        if replayable:
            reason = "The failure was replayed (fails before, passes after), but the repository's tests fail before and after alike."
            return Verified(ProofLevel.NOT_VERIFIED, reason, (), False, isolation)
        if tests_passed:
            return Verified(ProofLevel.TESTS_ONLY, f"The repository's tests pass. {not_replayable}", (), True, isolation)
        why = "Its tests fail before and after alike." if tests_passed is False else " ".join(self.found.reasons) or "It has no tests."
        return Verified(ProofLevel.NOT_VERIFIED, f"{not_replayable} {why}", (), tests_passed, isolation)

    async def _baseline(self, prefix: str) -> tuple[bool, str]:
        manifest, step = self.found.manifest, f"{prefix}baseline"
        async with workspace(self.root, self.checkout, self.proposal.base_commit) as folder:
            if failed := await self._setup(f"{step}.setup", folder):
                return False, f"The failure could not be replayed: setting up failed ({failed.command}: {_ending(failed)})."
            failed = await self._lines(f"{step}.reproduce", manifest.reproduce, folder)
        if failed is None:
            raise self._unsafe(
                f"The failure does not happen on the current main ({self.proposal.base_commit[:12]}): replaying the signals passes.",
                "Is it already fixed, or does it need data or settings that the replay does not have?",
            )
        if failed.outcome == "exited" and failed.exit_code == REPRODUCED:
            await self.tell(f"{prefix}reproduced", f"On {self.proposal.base_commit[:12]} the failure happens again.")
            return True, ""
        return False, f"The failure could not be replayed ({failed.command}: {_ending(failed)})."

    async def _replay_after(self, prefix: str, folder: Path) -> None:
        failed = await self._lines(f"{prefix}changed.reproduce", self.found.manifest.reproduce, folder)
        if failed is None:
            await self.tell(f"{prefix}fixed", "With the change the same replay passes.")
            return
        if failed.outcome == "exited" and failed.exit_code == REPRODUCED:
            what = f"reverting {self.proposal.reverts[:12]}" if self.proposal.reverts else "the change"
            raise self._unsafe(f"The failure is still there after {what}.", "Which other change could have caused it?")
        raise self._unsafe(
            f"The failure could be replayed before the change but not after it ({_ending(failed)}).",
            "What does the replay need that the change takes away?",
        )

    async def _tests(self, prefix: str, folder: Path) -> bool | None:
        """True: they pass. False: they fail, and failed before the change too. None: there are none, or they cannot be run here."""
        manifest = self.found.manifest
        if not manifest.test:
            return None
        failed = await self._lines(f"{prefix}changed.test", manifest.test, folder)
        if failed is None:
            return True
        async with workspace(self.root, self.checkout, self.proposal.base_commit) as before:
            await self._setup(f"{prefix}baseline.setup_for_tests", before)
            failed_before = await self._lines(f"{prefix}baseline.test", manifest.test, before)
        if failed_before is None:
            raise self._unsafe(
                f"The repository's tests pass on the current main and fail with the change ({failed.command}: {_ending(failed)}).",
                "Do those tests describe what is wanted? If so, what should be done instead?",
            )
        return False

    async def _setup(self, step: str, folder: Path) -> SandboxRun | None:
        """The manifest's setup, as ``_lines``; whatever runs in this folder later builds on it."""
        return await self._lines(step, self.found.manifest.setup, folder, is_setup=True)

    async def _lines(self, step: str, lines: Sequence[str], folder: Path, *, is_setup: bool = False) -> SandboxRun | None:
        """Runs shell lines in order until one fails, and gives that one; None when all passed."""
        before = self._set_up.get(folder, ())
        for number, line in enumerate(lines):
            argv = ("sh", "-c", line)
            run = await self._run(step, number, argv, folder, before)
            if run.exit_code is not None:
                before += ((argv, run.exit_code),)
            if is_setup:
                self._set_up[folder] = before
            if not (run.outcome == "exited" and run.exit_code == 0):
                return run
        return None

    async def _run(self, step: str, number: int, argv: tuple[str, ...], folder: Path, before: Trail) -> SandboxRun:
        wall_seconds = min(self.limits.wall_seconds, self.found.manifest.timeout.total_seconds())
        line = argv[-1]
        request = RunRequest(
            argv,
            folder,
            self.toolchains,
            inputs=_inputs(self.signals),
            limits=replace(self.limits, wall_seconds=wall_seconds, cpu_seconds=max(1, int(wall_seconds))),
            key=RunKey(self.project, self.change_id, f"{step}/{number}"),
            before=before,
        )
        # The sandbox adds what only it knows, such as the name of its Job.
        with telemetry.span("sandbox run", loopwright__sandbox__step=step, loopwright__sandbox__isolation=self.sandbox.isolation):
            result = await self._counted(request)
            exit_code = result.exit_code if result.exit_code is not None else -1
            telemetry.annotate(loopwright__sandbox__outcome=result.outcome, loopwright__sandbox__exit_code=exit_code)
        self.facts = result.facts
        run = SandboxRun(
            step=step,
            command=shorten(line),
            isolation=result.isolation,
            outcome=result.outcome,
            exit_code=result.exit_code,
            wall_seconds=result.wall_seconds,
            cpu_seconds=result.cpu_seconds,
            output_tail=printable(result.output_tail)[-TAIL_CHARACTERS_MAX:],
        )
        if len(self.runs) < 50:
            self.runs.append(run)
        await self.tell(step, f"{shorten(line, 200)}: {_ending(run)} after {run.wall_seconds:.1f} s ({run.isolation})")
        return run

    async def _counted(self, request: RunRequest) -> RunResult:
        isolation = self.sandbox.isolation
        try:
            result: RunResult = await self.sandbox.run(request)
        except SandboxBroken:
            RUNS.labels(isolation, "broken").inc()
            raise
        RUNS.labels(isolation, result.outcome).inc()
        RUN_SECONDS.labels(isolation).observe(result.wall_seconds)
        return result

    def _unsafe(self, reason: str, missing: str) -> NoSafeChange:
        return NoSafeChange(reason, missing, self.runs)


async def check_it_applies(verification: Verification) -> None:
    """Raises NoSafeChange when the diff does not apply to its own base."""
    try:
        async with workspace(verification.root, verification.checkout, verification.proposal.base_commit, verification.proposal.diff):
            pass
    except GitFailed as error:
        raise NoSafeChange(f"The diff does not apply: {shorten(str(error), 500)}", "Could somebody make this change by hand?") from error


def _inputs(signals: Sequence[Signal]) -> tuple[InputFile, ...]:
    if not signals:
        return ()
    as_json = [signal.model_dump(mode="json") for signal in signals]
    return (
        InputFile("signals.json", json.dumps(as_json).encode(), "LOOPWRIGHT_SIGNALS"),
        InputFile("signal.json", json.dumps(as_json[0]).encode(), "LOOPWRIGHT_SIGNAL"),
    )


def _ending(run: SandboxRun) -> str:
    return f"exit {run.exit_code}" if run.outcome == "exited" else run.outcome.replace("_", " ")
