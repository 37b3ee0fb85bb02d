"""Grouping, version 2: version 1's rules between kinds of signal and between machines, and a fitted matcher between texts by people.

Where two people write about one problem, no single figure tells it from two problems of one part of the product. So the candidates of a
hybrid search are compared in some forty scale-free features (`features`), ranked against each other, and the best is given a probability
(`matcher`). Three answers: join, open, or unsure; and, beside them, which earlier reports to suggest. The thresholds (`matcher.Thresholds`)
are apart because the costs are: a wrong merge hides a problem, a wrong suggestion costs a glance.

While a project has few texts their words' rarity means little; until then version 1's rules hold for people too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loopwright_cluster.domain import Candidate, Decision, Exemplar, Match, Outcome
from loopwright_cluster.grouping import v1
from loopwright_cluster.grouping.features import FEATURES, Text, compare, crowding_of
from loopwright_cluster.grouping.lexicon import Rarity
from loopwright_cluster.grouping.matcher import Matcher, Ranking, fitted
from loopwright_cluster.grouping.v1 import HUMAN_KINDS, Surroundings
from loopwright_cluster.grouping.wording import wording_of

VERSION = "v2"
CANDIDATES_EACH = 40  # of each of three searches; on the training rows 10 hold the right report in .73 of the cases, 30 in .81, 60 in .85
SURE = 0.5  # from where on a join is more likely right than wrong, so that nobody need be asked
LEXICON_REPORTS_MIN = 20  # texts in a project before the matcher speaks

SUGGESTED_MAX = 10


@dataclass(frozen=True)
class Hearing:
    """What a text by a person is judged with: the hybrid search's matches (their reports as they stand now) and the project's rarities."""

    matches: Sequence[Match] = ()
    rarity: Rarity | None = None


@dataclass(frozen=True)
class Judgement:
    """A decision and what it leaves open. ``similar``: reports to link to.

    ``unsure``: what a model may be asked about, best first; the decision is what holds without an answer, and may be a join already.
    """

    decision: Decision
    probability: float | None = None
    unsure: tuple[Candidate, ...] = ()
    similar: tuple[Candidate, ...] = ()
    ranked: tuple[Candidate, ...] = field(default=(), repr=False)


def judge(newcomer: Exemplar, around: Surroundings, hearing: Hearing, matcher: Matcher | None = None) -> Judgement:
    """Return where the newcomer goes, how probable that is, and what is like it. Pure."""
    speaks = newcomer.kind in HUMAN_KINDS and hearing.rarity is not None and hearing.rarity.reports >= LEXICON_REPORTS_MIN
    if not speaks or around.degraded:
        return Judgement(v1.decide(newcomer, around))
    rules = v1.decide(newcomer, _without_people(around))
    if rules.outcome is Outcome.JOIN:  # of another kind, and agreeing by version 1's rules: nearer than any wording
        return Judgement(rules)
    matcher = matcher or fitted()
    ranked, bars = _weigh(newcomer, hearing, around, matcher), matcher.thresholds
    if not ranked:
        return Judgement(rules)
    best = ranked[0]
    candidates = (*ranked, *rules.candidates)
    similar = tuple(item for item in ranked[:SUGGESTED_MAX] if item.score >= bars.suggest)
    unsure = ranked[:SUGGESTED_MAX] if bars.ask <= best.score < max(SURE, bars.join) and not newcomer.explicit else ()
    if best.score >= bars.join and not newcomer.explicit and not best.match.exemplar.explicit:
        decision = Decision(Outcome.JOIN, best.report_id, _why_joined(best, bars.join), candidates)
        return Judgement(decision, best.score, unsure, similar[1:], ranked)
    decision = Decision(Outcome.OPEN, None, _why_opened(best, bars.join), candidates)
    return Judgement(decision, best.score, unsure, similar, ranked)


def _without_people(around: Surroundings) -> Surroundings:
    """The surroundings without what people wrote: between two texts by people the matcher decides."""
    neighbours = [match for match in around.neighbours if match.exemplar.kind not in HUMAN_KINDS]
    same_kind = {
        report: [match for match in matches if match.exemplar.kind not in HUMAN_KINDS] for report, matches in around.same_kind.items()
    }
    return replace(around, neighbours=neighbours, same_kind=same_kind)


def _weigh(newcomer: Exemplar, hearing: Hearing, around: Surroundings, matcher: Matcher) -> tuple[Candidate, ...]:
    """The reports of the matches, most probable first; each report by its best exemplar."""
    fit = [match for match in hearing.matches if _may_meet(newcomer, match.exemplar, around)]
    if not fit or hearing.rarity is None:
        return ()
    others = [Text(wording_of(item.exemplar.title, item.exemplar.body), item.exemplar.occurred_at) for item in fit]
    own = Text(wording_of(newcomer.title, newcomer.body), newcomer.occurred_at)
    features = compare(own, others, [item.similarity for item in fit], _crowding(fit), hearing.rarity)
    ranking: Ranking = matcher.ranked(features)
    found: dict[str, Candidate] = {}
    for at, probability in zip(ranking.order, ranking.probabilities, strict=True):
        match = fit[int(at)]
        if match.exemplar.report_id in found:
            continue
        row = features[int(at)]
        told = dict(matcher.because(features, int(at), 6)) if len(found) < SUGGESTED_MAX else {}
        named: Mapping[str, float] = {
            "probability": round(float(probability), 4),
            "cosine": match.similarity,
            "words_cosine": round(float(row[FEATURES.index("words_cosine")]), 4),
            "rarest": round(float(row[FEATURES.index("rarest")]), 4),
            **{name: round(value, 4) for name, value in told.items()},
        }
        verdict = f"the same problem with a probability of {float(probability):.3f}"
        found[match.exemplar.report_id] = Candidate(match, match.exemplar.report_id, round(float(probability), 6), named, verdict)
    return tuple(found.values())


def _crowding(matches: Sequence[Match]) -> Sequence[float]:
    vectors = [match.vector for match in matches if match.vector is not None]
    return crowding_of(np.stack(vectors)) if vectors and len(vectors) == len(matches) else [0.0] * len(matches)


def _may_meet(newcomer: Exemplar, other: Exemplar, around: Surroundings) -> bool:
    """Texts by people of one service, or where one names none; reports that were put away take in only their own kind."""
    if other.kind not in HUMAN_KINDS or other.fingerprint == newcomer.fingerprint:
        return False
    if newcomer.service and other.service and newcomer.service != other.service:
        return False
    return other.report_id not in around.quiet or other.kind == newcomer.kind


SAID = {
    "title_share_new": "the titles share rare words",
    "title_share_old": "the titles share rare words",
    "title_cosine": "the titles are alike",
    "title_in_old": "its title's words are in the earlier text",
    "title_in_new": "the earlier title's words are in its text",
    "words_cosine": "they use the same words",
    "words_share_old": "they use the same words",
    "rarest": "they share a rare word",
    "rarest_2": "they share two rare words",
    "rarest_4": "they share four rare words",
    "title_rarest": "the titles share a rare word",
    "names": "they name the same things",
    "title_names": "a name in a title is in the other text",
    "quotes": "they quote the same",
    "lines": "they hold the same lines",
    "errors": "they tell of the same error",
    "errors_share": "they tell of the same error",
    "title_letters": "the titles are spelled alike",
    "code_cosine": "their code is alike",
    "search_all": "it is among the first for its words",
    "search_all_rank": "it is among the first for its words",
    "search_title": "it is among the first for its title",
    "search_title_rank": "it is among the first for its title",
    "meaning": "they mean about the same",
    "meaning_rank": "no other means more nearly the same",
    "meaning_stands_out": "no other means more nearly the same",
    "own_meaning": "they mean about the same, and not what the others mean",
    "own_meaning_rank": "they mean about the same, and not what the others mean",
    "own_meaning_stands_out": "they mean about the same, and not what the others mean",
}


def _why_joined(best: Candidate, join_from: float) -> str:
    return (
        f"the same problem as “{_short(best.match.exemplar.title)}” with a probability of {best.score:.2f} "
        f"(joined from {join_from:.2f}){_because(best)}"
    )


def _why_opened(best: Candidate, join_from: float) -> str:
    return (
        f"the nearest report, “{_short(best.match.exemplar.title)}”, is the same problem with a probability of {best.score:.2f} only "
        f"(joined from {join_from:.2f}){_because(best)}"
    )


def _because(best: Candidate) -> str:
    said = list(dict.fromkeys(f"{SAID[name]} ({value:.2f})" for name, value in best.features.items() if name in SAID))
    return f": {'; '.join(said[:4])}" if said else ""


def _short(title: str) -> str:
    return title if len(title) <= 80 else title[:79] + "…"
