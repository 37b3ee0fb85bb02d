"""People's last word on the grouping, as the gateway carries it out once cluster has: signals change reports, with all they amount to.

Afterwards both reports hold what they would hold had the signals come there in the first place. A fact that comes again changes nothing:
the word that it is about is done by then.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from loopwright_common.bus import Received
from loopwright_common.clock import Clock
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.reports import DismissReason, GroupUpdated, ReportsRegrouped, ReportState
from loopwright_common.errors import Permanent, Retryable

from loopwright_gateway import life
from loopwright_gateway.domain import OPEN_WORK, QUIET
from loopwright_gateway.life import POLICY
from loopwright_gateway.ports import ProjectOf, Store, Unit
from loopwright_gateway.records import Carried, FingerprintMove, Report, WordRecord

MERGE_HOPS_MAX = 1_024  # as many as the grouping follows
SERVICES_MAX = 32
# Why a report was closed by itself; when a person dismisses one, the timeline begins with the reason that was chosen.
EMPTIED = "All its signals went to report"
SPOKEN = {"merge": "The merge", "split": "The split", "move": "The move", "never_together": "“Never together”", "undo": "The undo"}


async def resolve(unit: Unit, report_id: str) -> Report | None:
    """The report, or the one it was merged into."""
    report = await unit.report(report_id)
    for _ in range(MERGE_HOPS_MAX):
        if report is None or report.merged_into is None:
            return report
        report = await unit.report(report.merged_into)
    raise Permanent(f"report {report_id} is merged in a circle")


async def wake(unit: Unit, report: Report, project: ProjectConfig, reason: str, now: datetime) -> None:
    """Sets a quiet report going again: it gathers, or is looked into again when it had been."""
    if report.attempt:
        await life.ask_for_investigation(unit, report, POLICY, reason, now)
    else:
        await life.transition(unit, report, ReportState.GATHERING, POLICY, reason, now)
        await life.consider_promotion(unit, report, project, now)


async def reopen_if_emptied(unit: Unit, report: Report, project: ProjectConfig, reason: str, now: datetime) -> bool:
    """Sets a report going again that was closed because nothing was left of it, and has signals. What a person dismissed stays so."""
    closed = report.state is ReportState.DISMISSED and report.state_reason.startswith(EMPTIED)
    if closed and report.signal_count:
        await wake(unit, report, project, reason, now)
        return True
    return False


async def routes(unit: Unit, facts: list[GroupUpdated]) -> dict[str, tuple[str, list[FingerprintMove]]]:
    """Signal -> the report it is counted on and the words that took it there, where that is not the report that was told.

    A fact that was decided before a word and comes after it belongs where its fingerprint now is.
    """
    by_project: dict[str, set[str]] = {}
    for fact in facts:
        by_project.setdefault(fact.project, set()).add(fact.decision.fingerprint)
    found: dict[str, tuple[str, list[FingerprintMove]]] = {}
    for project, fingerprints in by_project.items():
        moves = await unit.fingerprint_moves(project, sorted(fingerprints))
        for fact in facts if moves else []:
            if fact.project != project:
                continue
            current, taken = fact.report_id, []
            for move in moves.get(fact.decision.fingerprint.replace("\x00", "\ufffd"), ()):  # as databases keep it
                if fact.decided_at <= move.at and await _leads_to(unit, current, move.from_report_id):
                    current = move.to_report_id
                    taken.append(move)
            if taken:
                found[fact.signal.id] = (current, taken)
    return found


async def _leads_to(unit: Unit, report_id: str, wanted: str) -> bool:
    """Whether a report is another, or was merged into it."""
    for _ in range(MERGE_HOPS_MAX):
        if report_id == wanted:
            return True
        report = await unit.report(report_id)
        if report is None or report.merged_into is None:
            return False
        report_id = report.merged_into
    return False


class Regrouping:
    """Handles ReportsRegrouped. ``project_of`` gives a project's configuration by name."""

    def __init__(self, store: Store, project_of: ProjectOf, clock: Clock) -> None:
        self._store = store
        self._project_of = project_of
        self._clock = clock

    def _project(self, name: str) -> ProjectConfig:
        return self._project_of(name) or ProjectConfig(name=name)

    async def regrouped(self, message: Received[ReportsRegrouped]) -> None:
        """Carries out a word, or notes that it was refused."""
        fact = message.payload
        now = self._clock.now()
        async with self._store.transaction() as unit:
            word = await unit.word(fact.command_id) or _word(fact)
            if word.state != "asked":
                return
            if fact.refused:
                word.state, word.refusal = "refused", fact.refused
                await self._tell(unit, word, "grouping_refused", fact.actor, f"{SPOKEN[fact.action]} was not done: {fact.refused}", now)
            elif fact.action == "merge":
                await self._merge(unit, word, fact, now)
            elif fact.action in ("split", "move"):
                await self._take_out(unit, word, fact, now)
            elif fact.action == "undo":
                await self._undo(unit, word, fact, now)
            else:
                one, other = fact.report_id, fact.from_report_id
                words = f"{one} and {other} are never together, as said. {fact.reason}"
                await self._tell(unit, word, "kept_apart", fact.actor, f"Reports {words.strip()}", now)
            if not fact.refused:
                word.state = "done"
            await unit.save_word(word)

    async def _tell(self, unit: Unit, word: WordRecord, kind: str, actor: str, line: str, now: datetime) -> None:
        for report_id in word.reports:
            if (report := await unit.report(report_id)) is not None:
                await life.note(unit, report, kind, actor, line, now, f"regrouped:{word.command_id}")

    async def _merge(self, unit: Unit, word: WordRecord, fact: ReportsRegrouped, now: datetime) -> None:
        source, target = await unit.report(fact.from_report_id), await resolve(unit, fact.report_id)
        if source is None or target is None:
            missing = fact.from_report_id if source is None else fact.report_id
            raise Retryable(f"report {missing} is not known yet")
        if source.merged_into is not None or source.id == target.id:
            return
        await unit.mark(word.command_id, source.id, target.id, fact.at, fingerprints=(), signal_ids=None)
        carried = await unit.carried(word.command_id)
        # What the report says of itself rather than what its signals add up to: some of them may be forgotten for their age.
        everything = replace(
            carried, signal_count=source.signal_count, live_count=source.live_count, weight=source.weight, kinds=source.kinds,
            releases=source.releases, services=source.services, first_seen=source.first_seen if source.signal_count else None,
            last_seen=source.last_seen if source.signal_count else None,
        )  # fmt: skip
        source.people_count, target.people_count = await unit.carry(word.command_id, source.id, target.id, everything=True)
        add(target, everything, first=target.signal_count == 0)
        subtract(source, everything)
        source.weight = 0.0  # not what rounding leaves of it
        source.merged_into = target.id
        word.signals = carried.signals
        cause = f"regrouped:{word.command_id}"
        came = f"Report {source.id} was merged into this one. {fact.reason}".strip()
        await life.note(unit, target, "merged", fact.actor, came, now, cause)
        why = fact.reason or f"merged into report {target.id}"
        await life.transition(unit, source, ReportState.MERGED_INTO, fact.actor, why, now, cause, merged_into=target.id)
        await self._go_on(unit, target, came, now)

    async def _take_out(self, unit: Unit, word: WordRecord, fact: ReportsRegrouped, now: datetime) -> None:
        source, target = await resolve(unit, fact.from_report_id), await resolve(unit, fact.report_id)
        if source is None:
            raise Retryable(f"report {fact.from_report_id} is not known yet")
        if target is None and fact.action == "move":
            raise Retryable(f"report {fact.report_id} is not known yet")
        word.fingerprints = list(fact.fingerprints)
        if fact.action == "split":
            word.new_report_id = fact.report_id
        await unit.move_fingerprints(word.command_id, fact.project, fact.fingerprints, fact.from_report_id, fact.report_id, fact.at)
        await unit.mark(
            word.command_id, source.id, fact.report_id, fact.at, fingerprints=fact.fingerprints, signal_ids=fact.signal_ids or ()
        )
        carried = await unit.carried(word.command_id)
        word.signals = carried.signals
        cause = f"regrouped:{word.command_id}"
        if not carried.signals:
            line = "None of the signals named is here."
            if fact.fingerprints:
                line = (
                    f"None of its signals is here yet; what comes of {len(fact.fingerprints)} fingerprints goes to report {fact.report_id}."
                )
            await life.note(unit, source, fact.action, fact.actor, f"{line} {fact.reason}".strip(), now, cause)
            return
        if target is None:
            target = _opened(fact, source, carried, now)
            why = f"Split from report {source.id}. {fact.reason}".strip()
            await life.transition(unit, target, ReportState.GATHERING, fact.actor, why, now, first=True)
        await self._carry(unit, word.command_id, source, target, carried)
        left = f"{carried.signals} signals left for report {target.id}. {fact.reason}".strip()
        await life.note(unit, source, fact.action, fact.actor, left, now, cause)
        if fact.action == "move":
            came = f"{carried.signals} signals came from report {source.id}. {fact.reason}".strip()
            await life.note(unit, target, fact.action, fact.actor, came, now, cause)
        await self._close_when_empty(unit, source, target, fact.actor, now)
        await self._go_on(unit, target, f"{carried.signals} signals came from report {source.id}", now)

    async def _carry(self, unit: Unit, command_id: str, source: Report, target: Report, carried: Carried) -> None:
        """Moves what is marked. Both reports are written."""
        was_empty = target.signal_count == 0
        source.people_count, target.people_count = await unit.carry(command_id, source.id, target.id, everything=False)
        add(target, carried, first=was_empty)
        subtract(source, carried)
        kept = await unit.kept(source.id, source.signal_count)
        if kept.complete:  # otherwise some of what it still counts is forgotten, and may have been the earliest
            source.services = kept.services[:SERVICES_MAX]
            source.first_seen = kept.first_seen or source.first_seen
        source.last_seen = kept.last_seen or source.last_seen
        await unit.save_report(source)
        await unit.save_report(target)

    async def _undo(self, unit: Unit, word: WordRecord, fact: ReportsRegrouped, now: datetime) -> None:
        undone = await unit.word(fact.undoes) if fact.undoes else None
        if undone is None:  # said before words were kept: what cluster names still goes back
            undone = replace(word, command_id=fact.undoes or "", action="split" if fact.fingerprints else "merge", undone_by=None)
        word.undoes = undone.command_id
        word.report_id, word.other_report_id = fact.report_id, fact.from_report_id  # it may have been said on either
        word.fingerprints = list(fact.fingerprints)
        said = f"{SPOKEN[undone.action]} was taken back"
        if undone.action != "never_together":
            await self._take_back(unit, word, undone, fact, said, now)
        undone.state, undone.undone_by = "undone", word.command_id
        if undone.command_id:
            await unit.save_word(undone)
        about = replace(word, new_report_id=undone.new_report_id)
        await self._tell(unit, about, "undone", fact.actor, f"{said}; {word.signals} signals went back. {fact.reason}".strip(), now)

    async def _take_back(self, unit: Unit, word: WordRecord, undone: WordRecord, fact: ReportsRegrouped, said: str, now: datetime) -> None:
        source = await resolve(unit, fact.from_report_id)
        target = await unit.report(fact.report_id) if undone.action == "merge" else await resolve(unit, fact.report_id)
        if target is None:
            raise Retryable(f"report {fact.report_id} is not known yet")
        await unit.move_fingerprints(word.command_id, fact.project, fact.fingerprints, fact.from_report_id, fact.report_id, fact.at)
        if source is not None and source.id != target.id:
            await unit.mark_back(
                word.command_id, undone.command_id, fact.project, source.id, target.id, fact.at, fingerprints=fact.fingerprints,
                merge=undone.action == "merge",
            )  # fmt: skip
            carried = await unit.carried(word.command_id)
            word.signals = carried.signals
            await self._carry(unit, word.command_id, source, target, carried)
            await unit.forget_marks(word.command_id, undone.command_id)
        if undone.action == "merge" and target.state is ReportState.MERGED_INTO:
            target.merged_into = None
            if target.signal_count or target.kinds or source is None:
                await wake(unit, target, self._project(target.project), said, now)
            else:  # all that was in it has gone elsewhere since: nothing to look into
                await life.transition(unit, target, ReportState.GATHERING, fact.actor, said, now)
                await self._close_when_empty(unit, target, source, fact.actor, now)
        else:
            await self._go_on(unit, target, said, now)
        if source is not None and source.id != target.id:
            await self._close_when_empty(unit, source, target, fact.actor, now)

    async def _go_on(self, unit: Unit, report: Report, reason: str, now: datetime) -> None:
        """What a report does that got signals: one that was closed for having none is opened again."""
        project = self._project(report.project)
        if not await reopen_if_emptied(unit, report, project, reason, now):
            await life.consider_promotion(unit, report, project, now)

    async def _close_when_empty(self, unit: Unit, report: Report, other: Report, actor: str, now: datetime) -> None:
        """A report that nothing is left of is no work for anybody, unless a change of it is under way."""
        if report.signal_count or report.kinds or report.state in OPEN_WORK | QUIET:
            return
        why = f"{EMPTIED} {other.id}"
        await life.transition(unit, report, ReportState.DISMISSED, actor, why, now, dismiss_reason=DismissReason.DUPLICATE)


def _word(fact: ReportsRegrouped) -> WordRecord:
    """The word of a fact that nobody asked for here."""
    word = WordRecord(
        fact.command_id, fact.project, fact.action, fact.report_id, fact.actor, fact.at, fact.reason, fact.from_report_id,
        undoes=fact.undoes, fingerprints=list(fact.fingerprints),
    )  # fmt: skip
    if fact.action in ("split", "move") and not fact.refused:
        word.report_id, word.other_report_id = fact.from_report_id, fact.report_id
    if fact.action == "split":
        word.other_report_id = None
    return word


def _opened(fact: ReportsRegrouped, source: Report, carried: Carried, now: datetime) -> Report:
    first, last = carried.first_seen or source.first_seen, carried.last_seen or source.last_seen
    return Report(
        id=fact.report_id, project=source.project, title=carried.title or source.title, state=ReportState.GATHERING, first_seen=first,
        last_seen=last, opened_at=now, updated_at=now,
    )  # fmt: skip


def add(report: Report, carried: Carried, *, first: bool = False) -> None:
    """Adds to a report what moved signals amount to; ``first`` where it counted none, and its times are theirs."""
    services = report.services if report.kinds else []  # a report that was merged away still names what it had
    report.services = sorted({*services, *carried.services})[:SERVICES_MAX]
    _change(report, carried, 1)
    if carried.first_seen is not None and carried.last_seen is not None:
        report.first_seen = carried.first_seen if first else min(report.first_seen, carried.first_seen)
        report.last_seen = carried.last_seen if first else max(report.last_seen, carried.last_seen)


def subtract(report: Report, carried: Carried) -> None:
    """Takes away from a report what moved signals amount to. Its services and times are for the caller to find out."""
    _change(report, carried, -1)
    if report.signal_count == 0:
        report.weight = 0.0  # not what rounding leaves of it


def _change(report: Report, carried: Carried, sign: int) -> None:
    report.signal_count += sign * carried.signal_count
    report.live_count += sign * carried.live_count
    report.weight += sign * carried.weight
    report.kinds = _sum(report.kinds, carried.kinds, sign)
    report.releases = _sum(report.releases, carried.releases, sign)
    if report.snoozed_at_count is not None:  # a snooze waits for signals that come, not for those that a person brings
        report.snoozed_at_count += sign * carried.signal_count


def _sum(numbers: dict[str, int], more: dict[str, int], sign: int) -> dict[str, int]:
    updated = dict(numbers)
    for name, number in more.items():
        updated[name] = updated.get(name, 0) + sign * number
    return {name: number for name, number in updated.items() if number > 0}
