"""What people ask of reports and changes. Refusals are Refused with the reason; a stale version is StaleVersion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from loopwright_common.clock import Clock
from loopwright_common.contracts.changes import Change, ChangeCommand
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.queries import FINGERPRINTS_PER_COMMAND_MAX, GroupCommand
from loopwright_common.contracts.reports import DismissReason, ReportState
from loopwright_common.contracts.subjects import COMMANDS_CHANGES, COMMANDS_GROUPS
from loopwright_common.errors import NotFound, Refused
from loopwright_common.identifiers import new_id

from loopwright_gateway import life
from loopwright_gateway.domain import OPEN_WORK, Action, Facts, IllegalTransition, actions
from loopwright_gateway.ports import ProjectOf, Store, Unit
from loopwright_gateway.records import ChangeRecord, Report, WordRecord

INPUTS_MAX = 20
SIGNALS_PER_COMMAND_MAX = 10_000  # as many as a GroupCommand names


class StaleVersion(Refused):
    """The report changed since the person saw it."""


class People:
    """One method per action; each is one transaction."""

    def __init__(self, store: Store, project_of: ProjectOf, clock: Clock) -> None:
        self._store = store
        self._project_of = project_of
        self._clock = clock

    def _project(self, name: str) -> ProjectConfig:
        return self._project_of(name) or ProjectConfig(name=name)

    async def _load(self, unit: Unit, report_id: str, version: int | None, action: Action) -> Report:
        report = await self._seen(unit, report_id, version)
        allowed = actions(await facts_of(unit, report))
        if action not in allowed:
            names = ", ".join(item.value for item in allowed) or "nothing"
            raise Refused(f"{action.value} is not possible while the report is {report.state.value}; possible: {names}")
        return report

    async def _seen(self, unit: Unit, report_id: str, version: int | None) -> Report:
        report = await unit.report(report_id)
        if report is None:
            raise NotFound(f"report {report_id} does not exist")
        if version is not None and version != report.version:
            raise StaleVersion(f"the report is at version {report.version}, and version {version} was acted on: look at it again")
        return report

    async def provide_input(self, report_id: str, actor: str, text: str, version: int | None = None) -> Report:
        """Writes the answer down and looks again with it."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.PROVIDE_INPUT)
            report.input = [*report.input, text][-INPUTS_MAX:]
            now = self._clock.now()
            try:
                await life.ask_for_investigation(unit, report, actor, f"Answered: {text}", now)
            except IllegalTransition as error:
                raise life.refuse(error) from error
            return report

    async def start_work(self, report_id: str, actor: str, version: int | None = None) -> Report:
        """Asks for the change, as far as the caps let it. Raises Refused with the cap."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.START_WORK)
            investigation = await unit.investigation(report_id)
            if investigation is None:
                raise Refused("the report was not investigated yet")
            try:
                decision = await life.consider_change(unit, report, investigation, self._project(report.project), actor, self._clock.now())
            except IllegalTransition as error:
                raise life.refuse(error) from error
            if not decision.start:
                line = f"{actor} asked for the change: {decision.reason}"
                await life.note(unit, report, "not_started", life.POLICY, line, self._clock.now(), f"not_started:{report.version}")
        if not decision.start:  # raised after the transaction, so that the timeline keeps the refusal
            raise Refused(decision.reason)
        return report

    async def dismiss(self, report_id: str, actor: str, reason: DismissReason, comment: str = "", version: int | None = None) -> Report:
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.DISMISS)
            words = reason.value.replace("_", " ")
            text = f"{words}: {comment}" if comment else words
            await life.transition(unit, report, ReportState.DISMISSED, actor, text, self._clock.now(), dismiss_reason=reason)
            return report

    async def suppress(self, report_id: str, actor: str, comment: str = "", version: int | None = None) -> Report:
        """Its signals are still counted on it, and it stays quiet."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.SUPPRESS)
            await life.transition(unit, report, ReportState.SUPPRESSED, actor, comment or "kept quiet", self._clock.now())
            return report

    async def snooze(
        self, report_id: str, actor: str, *, seconds: float | None = None, signals: int | None = None, version: int | None = None
    ) -> Report:
        """Quiet until a time, or until so many more signals, whichever comes first."""
        if seconds is None and signals is None:
            raise Refused("a snooze needs seconds or signals")
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.SNOOZE)
            now = self._clock.now()
            until = now + timedelta(seconds=seconds) if seconds is not None else None
            parts = ([f"until {until:%Y-%m-%d %H:%M} UTC"] if until else []) + ([f"for {signals} more signals"] if signals else [])
            await life.transition(unit, report, ReportState.SNOOZED, actor, " or ".join(parts), now)
            report.snoozed_until, report.snooze_signals, report.snoozed_at_count = until, signals, report.signal_count
            await unit.save_report(report)
            if until is not None:
                await life.set_timer(unit, "snooze", report.id, until)
            return report

    async def reopen(self, report_id: str, actor: str, comment: str = "", version: int | None = None) -> Report:
        """Looks at it afresh."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.REOPEN)
            await life.ask_for_investigation(unit, report, actor, comment or "reopened", self._clock.now())
            return report

    async def merge_into(self, report_id: str, actor: str, other_id: str, comment: str = "", version: int | None = None) -> Report:
        """Asks cluster to put this report's signals into another for good."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.MERGE_INTO)
            await self._other(unit, report, other_id, "this can be merged into")
            await self._say(unit, report, self._word("merge", report, actor, comment, report_id=other_id, other_report_id=report.id))
            return report

    async def split(
        self, report_id: str, actor: str, signal_ids: Sequence[str], fingerprints: Sequence[str], comment: str = "",
        version: int | None = None,
    ) -> Report:  # fmt: skip
        """Asks cluster to give some signals a report of their own."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.SPLIT)
            word = self._word("split", report, actor, comment)
            await self._say(unit, report, word, *await self._leaving(unit, report, signal_ids, fingerprints))
            return report

    async def move(
        self, report_id: str, actor: str, other_id: str, signal_ids: Sequence[str], fingerprints: Sequence[str], comment: str = "",
        version: int | None = None,
    ) -> Report:  # fmt: skip
        """Asks cluster to put some signals into another report."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.MOVE)
            await self._other(unit, report, other_id, "signals of this can be moved to")
            word = self._word("move", report, actor, comment, other_report_id=other_id)
            await self._say(unit, report, word, *await self._leaving(unit, report, signal_ids, fingerprints))
            return report

    async def never_together(self, report_id: str, actor: str, other_id: str, comment: str = "", version: int | None = None) -> Report:
        """Tells cluster that two reports are different problems."""
        async with self._store.transaction() as unit:
            report = await self._load(unit, report_id, version, Action.NEVER_TOGETHER)
            await self._other(unit, report, other_id, "this can be kept apart from")
            await self._say(unit, report, self._word("never_together", report, actor, comment, other_report_id=other_id))
            return report

    async def undo(self, report_id: str, actor: str, command_id: str, comment: str = "", version: int | None = None) -> Report:
        """Asks cluster to take back a word on the grouping that is about this report, whatever state the report is in."""
        async with self._store.transaction() as unit:
            report = await self._seen(unit, report_id, version)
            said = await unit.word(command_id)
            if said is None or report.id not in said.reports:
                raise NotFound(
                    f"command {command_id} is not a word on the grouping of report {report_id}; /v1/reports/{report_id}/grouping lists them"
                )
            if not said.undoable:
                why = {
                    "asked": "it was not carried out yet", "refused": "it was refused, and changed nothing",
                    "undone": f"it was taken back already, by command {said.undone_by}",
                }.get(said.state, "it takes back another itself: say again what that said")  # fmt: skip
                raise Refused(f"command {command_id} cannot be taken back: {why}")
            await self._say(unit, report, self._word("undo", report, actor, comment, undoes=command_id))
            return report

    async def _other(self, unit: Unit, report: Report, other_id: str, purpose: str) -> Report:
        other = await unit.report(other_id)
        why = "there is no such report"
        if other is not None:
            if other.id != report.id and other.project == report.project and other.state is not ReportState.MERGED_INTO:
                return other
            why = f"it was merged into report {other.merged_into}: name that one"
            if other.id == report.id:
                why = "it is this one"
            elif other.project != report.project:
                why = f"it is one of project {other.project}"
        raise Refused(f"report {other_id} is not one of project {report.project} that {purpose}: {why}")

    async def _leaving(
        self, unit: Unit, report: Report, signal_ids: Sequence[str], fingerprints: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What leaves the report, as cluster is told: (signals, fingerprints).

        A fingerprint of which all signals are named goes along. Of a fingerprint that is named, signals that a person put here alone are
        named too: to cluster their fingerprint is elsewhere. Raises Refused for what is not on the report.
        """
        named = await unit.named(report.id, list(dict.fromkeys(signal_ids)))
        absent = sorted(set(signal_ids) - set(named))
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise Refused(f"signals {', '.join(absent[:3])}{more} are not on report {report.id}: they left it, or are no longer kept")
        of_named = Counter(fingerprint for fingerprint in named.values() if fingerprint)
        here = await unit.signals_of(report.id, sorted({*of_named, *fingerprints}))
        foreign = sorted(set(fingerprints) - set(here))
        if foreign:
            raise Refused(f"fingerprint {foreign[0][:200]} has no signal on report {report.id}")
        whole = [fingerprint for fingerprint, number in of_named.items() if number == here[fingerprint]]
        alone = await unit.alone_of(report.id, sorted({*fingerprints, *whole}), SIGNALS_PER_COMMAND_MAX + 1)
        signals, leaving = tuple(dict.fromkeys([*named, *alone])), tuple(dict.fromkeys([*fingerprints, *whole]))
        for what, number, most in (
            ("signals", len(signals), SIGNALS_PER_COMMAND_MAX), ("fingerprints", len(leaving), FINGERPRINTS_PER_COMMAND_MAX)
        ):  # fmt: skip
            if number > most:
                raise Refused(f"these are {number} {what}; at most {most} leave at a time")
        return signals, leaving

    def _word(self, action: str, report: Report, actor: str, comment: str, **more: str) -> WordRecord:
        values: dict[str, Any] = {"report_id": report.id, **more}
        return WordRecord(new_id(), report.project, action, actor=actor, at=self._clock.now(), reason=comment, **values)

    async def _say(
        self, unit: Unit, report: Report, word: WordRecord, signal_ids: tuple[str, ...] = (), fingerprints: tuple[str, ...] = ()
    ) -> None:
        """Keeps the word, asks cluster to carry it out, and says on the report that it was asked."""
        command = GroupCommand.model_validate({
            "command_id": word.command_id, "project": word.project, "action": word.action, "report_id": word.report_id,
            "other_report_id": word.other_report_id, "signal_ids": signal_ids, "fingerprints": fingerprints, "undoes": word.undoes,
            "actor": word.actor, "reason": word.reason, "at": word.at,
        })  # fmt: skip
        word.fingerprints, word.signals = list(fingerprints), len(signal_ids)
        await unit.save_word(word)
        cause = f"command:{word.command_id}"
        await life.publish(unit, COMMANDS_GROUPS, command, cause, report.id, project=report.project)
        await life.note(unit, report, f"{word.action}_asked", word.actor, word.reason or word.action.replace("_", " "), word.at, cause)

    # Changes

    async def merge(self, change_id: str, actor: str, name: str, email: str, expected_head: str) -> ChangeRecord:
        """Asks for the merge of exactly the commit the person saw."""
        return await self._command(change_id, Action.MERGE, actor, "merge", name=name, email=email, expected_head=expected_head)

    async def decline(self, change_id: str, actor: str, name: str, email: str, comment: str) -> ChangeRecord:
        return await self._command(change_id, Action.DECLINE, actor, "decline", name=name, email=email, comment=comment)

    async def request_changes(self, change_id: str, actor: str, name: str, email: str, comment: str) -> ChangeRecord:
        """Hands the review to pr-agent; it is kept for the next attempt too."""
        return await self._command(change_id, Action.REQUEST_CHANGES, actor, "request_changes", name=name, email=email, comment=comment)

    async def _command(
        self,
        change_id: str,
        action: Action,
        actor: str,
        verb: str,
        *,
        name: str,
        email: str,
        comment: str = "",
        expected_head: str | None = None,
    ) -> ChangeRecord:
        async with self._store.transaction() as unit:
            change = await unit.change(change_id)
            if change is None:
                raise NotFound(f"change {change_id} does not exist")
            report = await self._load(unit, change.report_id, None, action)
            latest = await unit.latest_change(report.id)
            if latest is None or latest.id != change.id:
                raise Refused("a newer change has taken this one's place")
            head = Change.model_validate_json(change.body).pull_request if change.body else None
            if expected_head is not None and (head is None or head.head_commit != expected_head):
                seen = head.head_commit[:12] if head else "nothing"
                raise StaleVersion(f"the pull request's head is {seen}, and {expected_head[:12]} was seen: look at it again")
            now = self._clock.now()
            command = ChangeCommand.model_validate({
                "command_id": new_id(), "project": change.project, "change_id": change.id, "report_id": report.id, "action": verb,
                "actor": actor, "actor_name": name, "actor_email": email, "comment": comment, "expected_head": expected_head, "at": now,
            })  # fmt: skip
            await life.publish(unit, COMMANDS_CHANGES, command, f"command:{command.command_id}", change.id, project=change.project)
            if comment:
                change.feedback = [*change.feedback, comment][-INPUTS_MAX:]
                await unit.save_change(change)
            words = {"merge": "asked for the merge", "decline": f"declined: {comment}", "request_changes": f"asked for changes: {comment}"}
            await life.note(unit, report, verb, actor, words[verb], now, f"command:{command.command_id}")
            return change

    async def retry(self, change_id: str, actor: str) -> Report:
        """Starts the work again after a change failed, was closed or did not hold."""
        async with self._store.transaction() as unit:
            change = await unit.change(change_id)
            if change is None:
                raise NotFound(f"change {change_id} does not exist")
        return await self.start_work(change.report_id, actor)


async def facts_of(unit: Unit, report: Report) -> Facts:
    """What decides which actions a report offers."""
    investigation = await unit.investigation(report.id)
    actionable = investigation is not None and investigation.verdict.value == "actionable"
    return Facts(report.state, investigation is not None, actionable, report.state in OPEN_WORK)
