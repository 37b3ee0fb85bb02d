"""When the problem began, and with which release: first seen and the counts per release, set against the deploys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from loopwright_common.contracts.signals import Deploy

from loopwright_investigator.domain import Case, Evidence, Onset, Place, ReleaseFacts, abbreviated, line, plural
from loopwright_investigator.poisson import binomial_tail, chance_of_none
from loopwright_investigator.ports import History

RELEASES_MAX = 40
WORDS_MAX = 20  # of a person's answer that may name a release
_NAME = re.compile(r"[A-Za-z0-9][\w.@+/-]{2,80}")
# A deploy is announced when the new process is up, or a little later; signals may come before the announcement does.
ANNOUNCED_LATE = timedelta(minutes=10)
SURE = 0.05  # the usual level; the exact figure is in the evidence
GONE = 0.01  # to say that a problem went away by itself, which closes it without a change, more is asked
FACTOR = 3.0  # a rise that is worth calling one


@dataclass
class _Release:
    name: str
    commit: str = ""
    live_from: datetime | None = None
    first_minute: datetime | None = None
    signals: int = 0
    exposure: float = 0.0
    deploy_id: str = ""
    resolved: str | None = field(default=None)

    @property
    def begins(self) -> datetime | None:
        return self.live_from or self.first_minute


async def find_onset(case: Case, place: Place, history: History | None, evidence: Evidence) -> Onset:
    """The release it began with and the last one without it, with how sure that is and why.

    A release's commit is the deploy's, else what its name resolves to. Rates are signals per unit of exposure; where the use of the
    service is not known, per hour that the release was live.
    """
    releases = await _releases(case, place, history)
    said = await _said_by_people(case, releases, history)
    hours = not any(release.exposure for release in releases)
    facts = _facts(releases, case.now, hours)
    return replace(_find(case, facts, hours, _observe(case, facts, hours, evidence)), commit_from_person=said)


def _find(case: Case, facts: tuple[ReleaseFacts, ...], hours: bool, cited: tuple[str, ...]) -> Onset:
    report = case.ready.report
    seen = [release for release in facts if release.signals]
    if seen:
        bad: ReleaseFacts | None = seen[0]
    else:
        # The signals name no release, or one that nothing else knows: the deploy before the first of them is the nearest answer.
        before = [release for release in facts if release.live_from is not None and release.live_from <= report.first_seen + ANNOUNCED_LATE]
        bad = before[-1] if before else None
    if bad is None:
        return Onset(report.first_seen, releases=facts, reason="no release or deploy is known", cites=cited)
    position = facts.index(bad)
    good: ReleaseFacts | None = facts[position - 1] if position else None
    newest_seen = seen[-1] if seen else bad
    rise = _rise(facts)
    if rise is not None and seen and facts[rise] is not bad and facts[rise].signals:
        good, bad = facts[rise - 1], facts[rise]
        return _with_gone(
            Onset(
                report.first_seen,
                bad,
                good,
                newest_seen,
                facts,
                "rose",
                None,
                cites=cited,
                reason=f"seen before {line(bad.name, 80)}, but clearly more often since",
            ),
            hours,
        )
    if good is None:
        reason = f"{line(bad.name, 80)} is the first release that is known"
        return _with_gone(Onset(report.first_seen, bad, None, newest_seen, facts, "unclear", cites=cited, reason=reason), hours)
    if not seen:
        reason = f"the signals name no release; {line(bad.name, 80)} was deployed last before the first of them"
        return Onset(report.first_seen, bad, good, newest_seen, facts, "likely", cites=cited, reason=reason)
    rate = bad.signals / bad.exposure if bad.exposure > 0 else 0.0
    expected = rate * good.exposure
    chance = chance_of_none(rate, good.exposure) if bad.exposure > 0 else None
    unit = "hours" if hours else "requests"
    if chance is not None and chance <= SURE:
        tie = "new"
        reason = (
            f"first seen in {line(bad.name, 80)}, never in {line(good.name, 80)}: had that failed as often, {expected:,.1f} signals were "
            f"expected in its {good.exposure:,.0f} {unit}, and the chance of none is {chance:.2g}"
        )
    else:
        tie = "likely"
        reason = f"first seen in {line(bad.name, 80)}, never in {line(good.name, 80)}, which was used too little to be sure"
    return _with_gone(Onset(report.first_seen, bad, good, newest_seen, facts, tie, chance, reason=reason, cites=cited), hours)


async def _said_by_people(case: Case, releases: list[_Release], history: History | None) -> str:
    """The running commit from people's answers, newest first, where no failing release names one; it is then put into ``releases``."""
    failing = [release for release in releases if release.signals]
    if history is None or any(release.resolved for release in failing or releases):
        return ""
    for text in reversed(case.ready.report.input[-5:]):
        for word in [word.strip(".") for word in _NAME.findall(text) if any(character.isdigit() for character in word)][:WORDS_MAX]:
            commit = await history.resolve(word)
            if commit is not None:
                if not failing:
                    failing = [_Release(word, first_minute=case.ready.report.first_seen, signals=1)]
                    releases += failing
                failing[0].resolved = commit
                return commit
    return ""


async def _releases(case: Case, place: Place, history: History | None) -> list[_Release]:
    found: dict[str, _Release] = {}
    deploys: Sequence[Deploy] = [*case.ready.deploys, *(case.rates.deploys if case.rates is not None else ())]
    environments = {signal.environment for signal in case.signals if signal.environment}
    of_service = [deploy for deploy in deploys if not place.service or deploy.service == place.service]
    in_environment = [deploy for deploy in of_service if deploy.environment in environments]
    for deploy in sorted({deploy.id: deploy for deploy in (in_environment or of_service)}.values(), key=lambda item: item.deployed_at):
        known = found.get(deploy.release)
        if known is None:
            found[deploy.release] = _Release(deploy.release, commit=deploy.commit or "", live_from=deploy.deployed_at, deploy_id=deploy.id)
    if case.rates is not None:
        for minute in case.rates.exposure:
            if place.service and minute.service != place.service:
                continue
            release = found.setdefault(minute.release, _Release(minute.release)) if minute.release else None
            if release is not None and minute.unit != "probes":
                release.exposure += minute.count
                release.first_minute = min(release.first_minute or minute.minute, minute.minute)
        for count in case.rates.signals:
            if count.release:
                release = found.setdefault(count.release, _Release(count.release))
                release.first_minute = min(release.first_minute or count.minute, count.minute)
    for name, number in case.ready.report.releases.items():
        if name:
            found.setdefault(name, _Release(name)).signals = number
    for signal in case.signals:
        if signal.release and signal.release in found:
            release = found[signal.release]
            release.signals = max(release.signals, 1)
            release.first_minute = min(release.first_minute or signal.occurred_at, signal.occurred_at)
    if history is not None:
        for release in found.values():
            release.resolved = await history.resolve(release.commit or release.name)
            if release.resolved is None and release.commit:
                release.resolved = await history.resolve(release.name)
    ordered = sorted(found.values(), key=lambda release: release.begins or datetime.max.replace(tzinfo=case.now.tzinfo))
    return ordered[-RELEASES_MAX:]


def _facts(releases: Sequence[_Release], now: datetime, hours: bool) -> tuple[ReleaseFacts, ...]:
    facts = []
    for position, release in enumerate(releases):
        later = releases[position + 1].begins if position + 1 < len(releases) else None
        until = later or now
        exposure = release.exposure
        if hours:
            exposure = max(0.0, (until - release.begins).total_seconds() / 3_600) if release.begins is not None else 0.0
        facts.append(ReleaseFacts(release.name, release.resolved, release.begins, later, release.signals, exposure, release.deploy_id))
    return tuple(facts)


def _observe(case: Case, facts: Sequence[ReleaseFacts], hours: bool, evidence: Evidence) -> tuple[str, ...]:
    report = case.ready.report
    unit = "hours live" if hours else "requests"
    rows = [
        f"{line(release.name, 80)}: live from {_when(release.live_from)}, {plural(release.signals, 'signal')} in "
        f"{release.exposure:,.1f} {unit}, commit {abbreviated(release.commit) if release.commit else 'unknown'}"
        for release in facts
    ]
    window = f"{_when(case.rates_start or report.first_seen)} to {_when(case.now)}"
    answer = "\n".join(rows) or "No deploy and no release is known."
    if case.rates is None:
        answer += f"\nThe exact rates could not be asked: {case.rates_missing or 'no answer'}."
    elif case.rates.truncated:
        answer += "\nThe rates are cut at the limit: exposures are lower bounds."
    observed = evidence.observe(
        "deploys",
        f"Which releases were live, and how many signals did each have? (deploys; rates.query report_id={report.id})",
        answer,
        window=window,
        data={
            "first_seen": report.first_seen.isoformat(),
            "last_seen": report.last_seen.isoformat(),
            "releases": [
                {
                    "release": line(each.name, 120),
                    "commit": each.commit,
                    "live_from": _when(each.live_from),
                    "signals": each.signals,
                    "exposure": round(each.exposure, 3),
                    "unit": "hours" if hours else "requests",
                }
                for each in facts
            ],
        },
    )
    return (observed,) if observed else ()


def _rise(facts: Sequence[ReleaseFacts]) -> int | None:
    """The position of the release whose rate rose most clearly over all releases before it, when one did."""
    best: tuple[float, int] | None = None
    for position in range(1, len(facts)):
        before_count = sum(release.signals for release in facts[:position])
        before_exposure = sum(release.exposure for release in facts[:position])
        here = facts[position]
        if not before_count or not here.signals or before_exposure <= 0 or here.exposure <= 0:
            continue
        factor = (here.signals / here.exposure) / (before_count / before_exposure)
        chance = binomial_tail(here.signals, here.signals + before_count, here.exposure / (here.exposure + before_exposure))
        if factor >= FACTOR and chance <= SURE / len(facts) and (best is None or chance < best[0]):
            best = (chance, position)
    return best[1] if best is not None else None


def _with_gone(onset: Onset, hours: bool) -> Onset:
    """Adds the later release in which it is not seen any more, when that was used enough to tell."""
    if onset.newest_seen is None or onset.bad is None or hours:
        return onset
    position = onset.releases.index(onset.newest_seen)
    seen = [release for release in onset.releases if release.signals]
    exposure = sum(release.exposure for release in seen)
    if exposure <= 0:
        return onset
    rate = sum(release.signals for release in seen) / exposure
    later = onset.releases[position + 1 :]
    quiet = sum(release.exposure for release in later)
    chance = chance_of_none(rate, quiet)
    if not later or quiet <= 0 or chance > GONE:
        return onset
    return replace(onset, gone_since=later[0], gone_chance=chance)


def _when(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else "an unknown time"
