"""Load, decide, do, store, publish. Every fact's message id follows from its cause, so that what comes twice is said once.

What was prepared is stored before it is published on the forge, and the publisher finds what an earlier try did by the branch's name:
a crash at any point repeats a step and never opens a second pull request.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Conflict, MessageTooLarge, Outgoing, Received
from loopwright_common.clock import Clock
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.changes import ChangeCommand, ChangeProgress, ChangeRequested, CommandRefused, SandboxRun
from loopwright_common.contracts.subjects import (
    CHANGES_CLOSED,
    CHANGES_FAILED,
    CHANGES_MERGED,
    CHANGES_OPENED,
    CHANGES_PROGRESSED,
    CHANGES_REFUSED,
    CHANGES_UPDATED,
    Subject,
)
from loopwright_common.errors import Permanent, Retryable, Unavailable
from loopwright_common.identifiers import derived_id
from loopwright_common.projects import Projects
from loopwright_repositories.errors import ForgeConflict, ForgeNotFound, RepositoryRefused

from loopwright_pr_agent import body, domain
from loopwright_pr_agent.domain import Ending, NoSafeChange, Progress, Wish
from loopwright_pr_agent.making import Workshop, repository_of, service_of
from loopwright_pr_agent.ports import ForgeView, Kept, ProgressStore, Publication, Publisher, PullRequestSeen

SERVICE = "pr-agent"
ATTEMPTS_MAX = 8  # with delays that double from one second: a forge that is away for two minutes costs no change

log = structlog.get_logger()


class Changing:
    """The handlers of requests and commands, and the look at the forge."""

    def __init__(
        self, bus: Bus, store: ProgressStore, projects: Projects, workshop: Workshop, publisher: Publisher, view: ForgeView, clock: Clock
    ) -> None:
        self._bus = bus
        self._store = store
        self._projects = projects
        self._workshop = workshop
        self._publisher = publisher
        self._view = view
        self._clock = clock

    # Requests

    async def requested(self, received: Received[Any]) -> None:
        """Makes, proves and publishes the change, or goes on where an earlier try ended."""
        request: ChangeRequested = received.payload
        kept = await self._store.get(request.project, request.change_id)
        if kept is None:
            begun = domain.begin(request, "main", service_of(request)).model_copy(update={"traceparent": telemetry.traceparent()})
            kept = await self._store.create(begun, request.investigation)
            log.info("change_started", change_id=request.change_id, report_id=request.report.id)
        runs: list[SandboxRun] = []
        try:
            if kept.progress.phase == "working":
                kept = await self._make(kept, request, runs)
            if kept.progress.phase == "prepared":
                kept = await self._publish(kept, request)
        except NoSafeChange as error:
            kept = await self._fail(kept, error.reason, error.missing, error.runs or runs)
        except (Conflict, MessageTooLarge):
            raise
        except Permanent as error:
            kept = await self._fail(kept, str(error), "What is in the way has to be mended first; then start the work again.", runs)
        except Retryable as error:
            if received.attempt < ATTEMPTS_MAX:
                raise
            reason = f"Given up after {received.attempt} tries: {error}"
            kept = await self._fail(kept, reason, "Is the forge reachable? When it is, start the work again.", runs)
        await self._say_outcome(kept.progress)

    async def _make(self, kept: Kept, request: ChangeRequested, runs: list[SandboxRun]) -> Kept:
        published = self._projects.get(request.project)
        if published is None:
            raise Unavailable(f"the configuration of project {request.project} has not been seen yet")
        repository = repository_of(published.config, request)
        started = self._clock.now()

        async def tell(step: str, detail: str) -> None:
            await self._tell(request, step, detail)

        made = await self._workshop.make(request, repository, tell, runs)
        now = self._clock.now()
        cost = domain.cost_of(made.verified.runs, (now - started).total_seconds())
        text = body.compose(request, made.proposal, made.verified, cost)
        progress = kept.progress.model_copy(update={"base_branch": repository.default_branch})
        return await self._store.update(
            kept, domain.prepared(progress, made.proposal, made.verified, repository.name, text, made.files, cost, now)
        )

    async def _publish(self, kept: Kept, request: ChangeRequested) -> Kept:
        progress = kept.progress
        assert progress.change is not None
        published = self._projects.get(progress.project)
        if published is None:
            raise Unavailable(f"the configuration of project {progress.project} has not been seen yet")
        repository = repository_of(published.config, request)
        checkout = await self._workshop.repositories.fresh(repository)  # the mirror may have been lost with a disk meanwhile
        publication = Publication(
            change=progress.change,
            branch=progress.branch,
            base_branch=progress.base_branch,
            mirror=str(checkout.directory.absolute()),
            protected_paths=(*repository.protected_paths, *self._workshop.protected_paths),
            transcript=_transcript(progress),
            committed_at=progress.requested_at.isoformat(),
        )
        try:
            seen = await self._publisher.publish(publication)
        except RepositoryRefused as error:
            raise NoSafeChange(f"The change could not be published: {error}", "Could somebody look at the branch and the forge?") from error
        await self._tell(request, "opened", f"pull request #{seen.pull_request.number} from {progress.branch}")
        # The poll says what became of it; opened is said first, as an open one.
        pull_request = seen.pull_request.model_copy(update={"state": "open"})
        log.info("change_opened", change_id=progress.change_id, number=pull_request.number, proof=progress.change.proof.value)
        return await self._store.update(kept, domain.opened(progress, pull_request, self._clock.now()))

    async def _fail(self, kept: Kept, reason: str, missing: str, runs: Any) -> Kept:
        now = self._clock.now()
        cost = domain.cost_of(runs, sum(run.wall_seconds for run in runs))
        log.info("change_failed", change_id=kept.progress.change_id, reason=reason)
        return await self._store.update(kept, domain.failed(kept.progress, reason, missing, runs, cost, now))

    async def _say_outcome(self, progress: Progress) -> None:
        if progress.failed is not None:
            await self._say(CHANGES_FAILED, progress.failed, "failed", progress)
            return
        if progress.phase == "in_review" and progress.change is not None:
            await self._say(CHANGES_OPENED, progress.change, "opened", progress)
        if progress.ending is not None:
            await self._say_ending(progress, progress.ending)

    # Commands

    async def commanded(self, received: Received[Any]) -> None:
        """Carries out what a person wants, in that person's name, or says why not."""
        command: ChangeCommand = received.payload
        kept = await self._store.get(command.project, command.change_id)
        try:
            if kept is None or kept.progress.change is None or kept.progress.change.pull_request is None:
                raise _Refusal(f"change {command.change_id} has no pull request")
            if kept.progress.ending is not None:
                await self._again(kept.progress, command)
            elif command.action == "merge":
                await self._merge(kept, command)
            elif command.action == "decline":
                await self._decline(kept, command)
            else:
                await self._request_changes(kept.progress, command)
        except (_Refusal, RepositoryRefused, ForgeConflict, ForgeNotFound) as error:
            await self._refuse(command, str(error))
        except Conflict:
            raise
        except Retryable as error:
            if received.attempt < ATTEMPTS_MAX:
                raise
            await self._refuse(command, f"given up after {received.attempt} tries: {error}")

    async def _again(self, progress: Progress, command: ChangeCommand) -> None:
        wanted = {"merge": "merged", "decline": "closed"}.get(command.action)
        if progress.phase != wanted or progress.ending is None:
            raise _Refusal(f"the pull request is already {progress.phase}")
        await self._say_ending(progress, progress.ending)

    async def _merge(self, kept: Kept, command: ChangeCommand) -> None:
        change = kept.progress.change
        assert change is not None
        assert change.pull_request is not None
        expected = command.expected_head or change.pull_request.head_commit
        now_there = await self._view.look(change.repository, change.pull_request.number)
        if now_there.pull_request.state == "open" and now_there.pull_request.head_commit != expected:
            head = now_there.pull_request.head_commit[:12]
            raise _Refusal(f"the branch is at {head} now, and {expected[:12]} was looked at: look again, then merge")
        name, email = domain.person_of(command)
        kept = await self._wish(kept, Wish(action="merge", by=command.actor, reason=command.comment))
        try:
            seen = await self._publisher.merge(
                change.repository, change.pull_request.number, expected_head=expected, name=name, email=email, key=command.command_id
            )
        except RepositoryRefused:
            await self._wish(kept, None)
            raise
        await self._end(kept, seen)

    async def _decline(self, kept: Kept, command: ChangeCommand) -> None:
        change = kept.progress.change
        assert change is not None
        assert change.pull_request is not None
        comment = body.plain(command.comment, 1_500) or "Declined in the inbox."
        kept = await self._wish(kept, Wish(action="decline", by=command.actor, reason=command.comment))
        try:
            seen = await self._publisher.close(
                change.repository, change.pull_request.number, actor=command.actor, comment=comment, key=command.command_id
            )
        except RepositoryRefused:
            await self._wish(kept, None)
            raise
        await self._end(kept, seen)

    async def _wish(self, kept: Kept, wish: Wish | None) -> Kept:
        if kept.progress.wish == wish:
            return kept
        return await self._store.update(kept, kept.progress.model_copy(update={"wish": wish}))

    async def _request_changes(self, progress: Progress, command: ChangeCommand) -> None:
        change = progress.change
        assert change is not None
        assert change.pull_request is not None
        name, _ = domain.person_of(command)
        text = f"Changes requested by {body.plain(name, 100)}:\n\n{body.plain(command.comment, 1_800)}"
        await self._publisher.comment(
            change.repository, change.pull_request.number, actor=command.actor, body=text[:2_000], key=f"command:{command.command_id}"
        )

    async def _refuse(self, command: ChangeCommand, reason: str) -> None:
        fact = CommandRefused(
            command_id=command.command_id,
            project=command.project,
            change_id=command.change_id,
            report_id=command.report_id,
            action=command.action,
            reason=domain.shorten(reason),
            at=self._clock.now(),
        )
        log.info("command_refused", change_id=command.change_id, action=command.action, reason=reason)
        tokens = {"project": command.project}
        await self._bus.publish(Outgoing(CHANGES_REFUSED, fact, derived_id("refused", command.command_id), tokens, command.change_id))

    # The forge

    async def look_at_all(self) -> None:
        """Asks the forge about each open pull request: people merge, close and push there too."""
        for kept in await self._store.in_review():
            try:
                await self._look(kept)
            except Conflict:
                continue  # a command was faster; the next look sees what it did
            except (Retryable, Permanent) as error:
                log.warning("pull_request_not_seen", change_id=kept.progress.change_id, error=str(error)[:500])

    async def _look(self, kept: Kept) -> None:
        change = kept.progress.change
        assert change is not None
        assert change.pull_request is not None
        seen = await self._view.look(change.repository, change.pull_request.number)
        if seen.pull_request.state != "open":
            # Read again: a person's wish may have been noted after this look began.
            latest = await self._store.get(kept.progress.project, kept.progress.change_id)
            if latest is not None and latest.progress.phase == "in_review":
                await self._end(latest, seen)
            return
        updated = domain.seen(kept.progress, seen.pull_request, domain.with_details(change.checks, seen.checks), self._clock.now())
        if updated is not None and updated.change is not None:
            # Said before it is stored: a crash in between says it again under the same id.
            with telemetry.part("pull request updated", updated.traceparent):
                await self._say(CHANGES_UPDATED, updated.change, f"updated:{updated.updates}", updated)
            await self._store.update(kept, updated)

    async def _end(self, kept: Kept, seen: PullRequestSeen) -> None:
        now = self._clock.now()
        at = datetime.fromisoformat(seen.ended_at) if seen.ended_at else now
        merged = seen.pull_request.state == "merged"
        wish = kept.progress.wish
        theirs = wish is not None and wish.action == ("merge" if merged else "decline")
        by = wish.by if wish is not None and theirs else f"forge:{seen.ended_by or 'somebody'}"[:512]
        reason = wish.reason if wish is not None and theirs else ""
        ending = Ending(by=by, at=at, commit=seen.merge_commit if merged else None, reason=reason)
        with telemetry.part(f"pull request {seen.pull_request.state}", kept.progress.traceparent):
            await self._say_ending(kept.progress, ending)
        log.info("change_ended", change_id=kept.progress.change_id, state=seen.pull_request.state, by=by)
        await self._store.update(kept, domain.ended(kept.progress, ending, now))

    async def _say_ending(self, progress: Progress, ending: Ending) -> None:
        if ending.commit is None:
            await self._say(CHANGES_CLOSED, domain.closed_fact(progress, ending), "closed", progress)
            return
        investigation = await self._store.investigation(progress.project, progress.change_id)
        await self._say(CHANGES_MERGED, domain.merged_fact(progress, ending, investigation), "merged", progress)

    # Saying it

    async def _say(self, subject: Subject, fact: Contract, what: str, progress: Progress) -> None:
        message_id = derived_id("change", progress.change_id, what)
        await self._bus.publish(Outgoing(subject, fact, message_id, {"project": progress.project}, progress.change_id))

    async def _tell(self, request: ChangeRequested, step: str, detail: str) -> None:
        fact = ChangeProgress(
            change_id=request.change_id,
            project=request.project,
            report_id=request.report.id,
            step=step[:512],
            detail=domain.shorten(domain.printable(detail)),
            at=self._clock.now(),
        )
        message_id = derived_id("progress", request.change_id, step, detail)
        await self._bus.publish(Outgoing(CHANGES_PROGRESSED, fact, message_id, {"project": request.project}, request.change_id))

    # Repositories

    async def make_repositories(self) -> bool:
        """Sees to it that the forge has every configured repository, since nobody else may write there. True when all are there."""
        complete = True
        for published in self._projects.all():
            for repository in published.config.repositories:
                try:
                    await self._publisher.ensure(repository)
                except (Retryable, Permanent) as error:
                    complete = False
                    log.warning("repository_not_made", repository=repository.name, error=str(error)[:500])
        return complete


async def keep_looking(changing: Changing, seconds: float) -> None:
    """Looks at the forge until cancelled."""
    while True:
        try:
            await changing.look_at_all()
        except Retryable as error:
            log.warning("look_interrupted", error=str(error)[:500])
        await asyncio.sleep(seconds)


async def keep_repositories(changing: Changing, projects: Projects, seconds: float) -> None:
    """Makes repositories as the configuration changes, until cancelled; what failed is tried again after ``seconds``."""
    while True:
        complete = await changing.make_repositories()
        try:
            async with asyncio.timeout(None if complete else seconds):
                await projects.wait_changed()
        except TimeoutError:
            continue


def _transcript(progress: Progress) -> str:
    assert progress.change is not None
    change = progress.change
    tails = [f"{run.step}: {body.plain(run.command, 200)}\n\n{body.block(run.output_tail, 800)}" for run in change.runs[:12]]
    return "\n\n".join(["What was run, and what it said:", body.transcript(change.runs), *tails])[:15_000]


class _Refusal(Permanent):
    """A command that cannot be carried out, with the reason the person reads."""
