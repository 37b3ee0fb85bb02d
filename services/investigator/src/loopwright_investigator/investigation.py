"""One investigation from the case to the result: place, onset, frames, suspects, reach, fix, reviewers, priority, metric, verdict.

Pure over the ports: the same case over the same commits gives the same result, which is what a replay checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.investigations import (
    Cost,
    Investigation,
    InvestigationVerdict,
    MetricContract,
    PriorityFactor,
    Reviewer,
    SuspectCommit,
    SuspectLines,
)
from loopwright_common.contracts.signals import Signal

from loopwright_investigator.analyzers.addressed import find_fix
from loopwright_investigator.analyzers.blast_radius import measure_reach
from loopwright_investigator.analyzers.frames import locate
from loopwright_investigator.analyzers.metric import fix_metric
from loopwright_investigator.analyzers.onset import find_onset
from loopwright_investigator.analyzers.priority import rank
from loopwright_investigator.analyzers.reviewers import find_reviewers
from loopwright_investigator.analyzers.suspects import find_suspects
from loopwright_investigator.analyzers.verdict import judge
from loopwright_investigator.compose import Findings, compose_claims, compose_hypotheses, compose_summary, compose_title
from loopwright_investigator.domain import Addressed, Case, Evidence, Located, Onset, Place, Suspects, abbreviated, cites, line, short
from loopwright_investigator.evidence import supported_claims, supported_hypotheses
from loopwright_investigator.ports import History

CONTEXT_LINES = 3
SUSPECT_LINES_MAX = 6
DIFF_LINES_SHOWN_MAX = 60


def find_place(case: Case) -> Place:
    """The service and the repository the report is about: the service most signals with frames come from, as the project is configured."""
    config = case.config or ProjectConfig(name=case.ready.project)
    weights: Counter[str] = Counter()
    for signal in case.signals:
        if signal.service:
            weights[signal.service] += 3 if signal.frames else 1
    for service in case.ready.report.services:
        weights[service] += 0
    services = {service.name: service for service in config.services}
    repositories = {repository.name: repository for repository in config.repositories}
    with_repository = [name for name, _ in weights.most_common() if name in services and services[name].repository]
    if with_repository:
        name = with_repository[0]
        repository = services[name].repository
        return Place(name, services[name], repositories[repository] if repository else None, f"most signals come from the service {name}")
    name = next((name for name, _ in weights.most_common()), "")
    if len(repositories) == 1 and (not name or name not in services or services[name].repository is None):
        only = next(iter(repositories.values()))
        said = f"{name or 'the signals'} names no configured repository; {only.name} is the project's only one"
        return Place(name, services.get(name), only, said)
    return Place(name, services.get(name), None, f"no repository is configured for {name or 'these signals, which name no service'}")


async def investigate(
    case: Case, identifier: str, place: Place, history: History | None, evidence: Evidence, unreadable: str = ""
) -> tuple[Investigation, Findings]:
    """The whole deterministic result. ``history`` is None where no repository is configured or it could not be read (``unreadable``)."""
    report = case.ready.report
    evidence.observe(
        "configuration",
        "Where does the code of this report live? (configuration of the project)",
        _where_it_lives(place, history, unreadable),
        data={"service": place.service, "repository": place.repository.name if place.repository else None, "path": place.path},
    )
    onset = await find_onset(case, place, history, evidence)
    located, suspects, addressed = Located(), Suspects(), Addressed()
    reviewers: tuple[Reviewer, ...] = ()
    lines: tuple[SuspectLines, ...] = ()
    if history is not None:
        located = await _locate(case, place, onset, history, evidence)
        suspects = await find_suspects(case, place, located, onset, history, evidence)
        suspects = await _show_diff(suspects, located, history, evidence)
        addressed = await find_fix(report.id, case.signals, located, onset, suspects, history, evidence)
        reviewers = await find_reviewers(located, suspects, history, evidence)
        lines = await _suspect_lines(located, history)
    reach = measure_reach(case, place, onset, evidence)
    priority, factors = rank(case, reach)
    metric, metric_cite = fix_metric(case, place, onset, evidence)
    judgement = await judge(case, place, located, onset, suspects, addressed, reach, history, evidence, unreadable)
    found = Findings(
        case,
        place,
        located,
        onset,
        suspects,
        addressed,
        reach,
        judgement,
        priority,
        metric_cite,
        history.main if history is not None else "",
    )
    return _result(identifier, found, evidence, metric, factors, reviewers, lines), found


def _where_it_lives(place: Place, history: History | None, unreadable: str) -> str:
    folder = f", folder {place.path}" if place.path else ""
    deployed = f", deployed under {line(place.deployed_path, 200)}" if place.deployed_path else ""
    if history is not None:
        return f"{history.name}{folder}{deployed}, main at {abbreviated(history.main)}: {place.reason}"
    return f"{place.reason}{'; ' + line(unreadable, 500) if unreadable else ''}"


async def _locate(case: Case, place: Place, onset: Onset, history: History, evidence: Evidence) -> Located:
    commits = {release.name: release.commit for release in onset.releases if release.commit is not None}
    for signal in case.signals:
        if signal.release and signal.release not in commits and (commit := await history.resolve(signal.release)) is not None:
            commits[signal.release] = commit
    fallback = onset.newest_seen.commit if onset.newest_seen is not None and onset.newest_seen.commit else history.main
    signals = [_with_input(case, signal_position) for signal_position in range(len(case.signals))]
    own = [signal for signal in signals if not signal.service or not place.service or signal.service == place.service]
    return await locate(own or signals, commits, fallback, place, history, evidence)


def _with_input(case: Case, position: int) -> Signal:
    signal = case.signals[position]
    said = "\n".join(case.ready.report.input[-5:])
    # What a person answered is looked at like the words of a ticket, in front of what the signal itself says.
    return signal.model_copy(update={"body": f"{said}\n{signal.body}"[:16_384]}) if said and position == 0 else signal


async def _show_diff(suspects: Suspects, located: Located, history: History, evidence: Evidence) -> Suspects:
    """The suspects, the first citing its diff of the located files, which is left behind as evidence, cut to a screen."""
    first = suspects.first
    if first is None:
        return suspects
    paths = {location.path for location in located.locations}
    diffs = await history.diff(first.commit)
    chosen = [diff for diff in diffs if diff.path in paths or diff.old_path in paths] or list(diffs[:3])
    shown: list[str] = []
    for diff in chosen[:4]:
        shown.append(f"--- {diff.old_path or diff.path}\n+++ {diff.path}")
        for hunk in diff.hunks:
            shown.append(f"@@ -{hunk.old_start},{hunk.old_lines} +{hunk.new_start},{hunk.new_lines} @@ {line(hunk.heading, 80)}")
            shown += [{"added": "+", "deleted": "-", "context": " "}[text.kind] + text.text[:300] for text in hunk.lines]
    cut = len(shown) > DIFF_LINES_SHOWN_MAX
    short_id = abbreviated(first.commit)
    observed = evidence.observe(
        "git.diff",
        f"What did {short_id} change there? (git show {short_id} -- {' '.join(each.path for each in chosen[:4])})",
        "\n".join(shown[:DIFF_LINES_SHOWN_MAX]) + ("\n(cut)" if cut else "") or "nothing in text files",
        window=abbreviated(first.commit),
        data={"commit": first.commit, "files": [each.path for each in chosen[:20]]},
    )
    shown_first = replace(first, cites=cites(observed, *first.cites))
    return replace(suspects, candidates=(shown_first, *suspects.candidates[1:]), cites=cites(observed, *suspects.cites))


async def _suspect_lines(located: Located, history: History) -> tuple[SuspectLines, ...]:
    found: dict[tuple[str, int], SuspectLines] = {}
    for location in located.locations[:SUSPECT_LINES_MAX]:
        lines = await history.text(location.path, location.commit)
        number = location.line or location.start
        if lines is None or number is None:
            continue
        start, end = max(1, number - CONTEXT_LINES), min(len(lines), number + CONTEXT_LINES)
        text = "\n".join(each[:400] for each in lines[start - 1 : end])
        found.setdefault(
            (location.path, number), SuspectLines(file=line(location.path), start=start, end=end, text=text, commit=location.commit)
        )
    return tuple(found.values())


def _result(
    identifier: str,
    found: Findings,
    evidence: Evidence,
    metric: MetricContract,
    factors: Sequence[PriorityFactor],
    reviewers: tuple[Reviewer, ...],
    lines: tuple[SuspectLines, ...],
) -> Investigation:
    claims, dropped = supported_claims(compose_claims(found), evidence.ids)
    hypotheses, _ = supported_hypotheses(compose_hypotheses(found), evidence.ids)
    case, judgement = found.case, found.judgement
    return Investigation(
        id=identifier,
        project=case.ready.project,
        report_id=case.ready.report.id,
        attempt=case.ready.attempt,
        title=compose_title(found),
        summary=compose_summary(found),
        evidence=evidence.observations,
        claims=claims,
        claims_dropped=dropped,
        hypotheses=hypotheses,
        suspects=tuple(
            SuspectCommit(
                commit=each.commit,
                title=each.title,
                author=each.author,
                committed_at=each.committed_at,
                score=each.score,
                reasons=tuple(short(reason) for reason in each.reasons[:20]),
                files=each.files,
                cites=each.cites,
            )
            for each in found.suspects.candidates
        ),
        suspect_lines=lines,
        reviewers=reviewers[:10],
        repository=found.place.repository.name if found.place.repository else "",
        base_commit=found.main or None,
        priority=found.priority,
        priority_factors=tuple(factors),
        verdict=InvestigationVerdict(judgement.verdict),
        reason=short(judgement.reason),
        confidence=max(0.0, min(1.0, round(judgement.confidence, 4))),
        question=short(judgement.question),
        metric=metric,
        cost=Cost(),
        started_at=case.now,
        completed_at=case.now,
    )
