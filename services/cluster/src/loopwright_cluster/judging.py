"""How a new fingerprint is judged: which version decides, which one runs beside it in shadow, the projects' lexicons, and who is asked.

A project's lexicon is read from the index when the project is first judged here, and again when the index has come to differ much from it
(another replica wrote). Texts of the batch in hand count at once; they enter the lexicon when the batch is stored, so that a batch which
is handed in again counts once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import structlog
from loopwright_common.clock import Clock, SystemClock
from prometheus_client import Counter

from loopwright_cluster.adjudication import ANSWER_SECONDS_MAX, Adjudicator, Asking, Inquiry
from loopwright_cluster.comparison import Comparison
from loopwright_cluster.domain import Candidate, Decision, Exemplar, Outcome
from loopwright_cluster.grouping import v1, v2
from loopwright_cluster.grouping.lexicon import Lexicon, Rarity
from loopwright_cluster.grouping.matcher import fitted
from loopwright_cluster.grouping.v1 import HUMAN_KINDS
from loopwright_cluster.grouping.wording import wording_of
from loopwright_cluster.neighbourhood import Neighbourhood, Standing, Vector
from loopwright_cluster.ports import VectorIndex
from loopwright_cluster.word_records import Apart

LEXICON_TEXTS_MAX = 20_000  # read again at a start: some seconds; a word's rarity is known long before
LEXICONS_MAX = 64  # projects at once, 60 MB each at the very most, a few usually; the least recently used is forgotten
LEXICON_STALE_SHARE = 0.05

Version = Literal["v1", "v2"]
Shown = Mapping[str, str]
"""The reports that people see for those the matcher counts, where they are others. ``standing`` fills it as it is asked."""

SHADOW = Counter(
    "loopwright_cluster_shadow_decisions", "Decisions of the version in shadow beside the one in charge.", ["version", "agreed"]
)
log = structlog.get_logger()


class Judging:
    """Decides new fingerprints by ``version``; ``shadow`` is only compared. Without ``adjudicator`` an unsure pair is never asked about."""

    def __init__(
        self,
        version: Version = "v2",
        *,
        shadow: Version | None = None,
        adjudicator: Adjudicator | None = None,
        seconds_max: float = ANSWER_SECONDS_MAX,
        clock: Clock | None = None,
        join_probability_min: float = 0.0,
    ) -> None:
        self.version: Version = version
        self.shadow = shadow if shadow != version else None
        self.matcher = fitted().joining_from(join_probability_min) if join_probability_min else fitted()
        self._asking = Asking(adjudicator, seconds_max=seconds_max) if adjudicator is not None else None
        self._lexicons: OrderedDict[str, Lexicon] = OrderedDict()
        self._checked: dict[str, int] = {}
        self.comparison = Comparison(clock or SystemClock())  # by project; the metric has all

    def inquiry(self) -> Inquiry | None:
        """What a batch gathers its questions in; None where nobody can be asked."""
        return Inquiry(self._asking) if self._asking is not None else None

    async def close(self) -> None:
        """Let go of the model's connections."""
        if self._asking is not None:
            await self._asking.close()

    async def decide(
        self,
        index: VectorIndex,
        neighbourhood: Neighbourhood,
        newcomer: Exemplar,
        vector: Vector,
        standing: Standing,
        inquiry: Inquiry | None = None,
        shown: Shown | None = None,
        apart: Apart | None = None,
    ) -> v2.Judgement:
        """Where the newcomer goes: as the answer says that ``inquiry`` has had about it, and otherwise as without a model.

        What people's words forbid (``apart``) no version and no model is shown.

        An unsure one without an answer is put to the inquiry's questions. ``standing`` and the exemplars name the reports that the matcher
        counts them in, the judgement the reports that they are in (``shown``). Raises what the index raises.
        """
        around = await neighbourhood.around(newcomer, vector, standing)
        if apart is not None:
            around = await apart.admitted(around)
        hearing = v2.Hearing()
        if "v2" in (self.version, self.shadow) and newcomer.kind in HUMAN_KINDS and not around.degraded:
            rarity = neighbourhood.rarity_of(newcomer.project) or await self._rarity(index, neighbourhood, newcomer.project)
            wording = wording_of(newcomer.title, newcomer.body)
            matches, quiet = await neighbourhood.hybrid(newcomer, vector, wording, rarity, v2.CANDIDATES_EACH, standing)
            hearing = v2.Hearing(matches if apart is None else await apart.among(matches), rarity)
            around = replace(around, quiet=frozenset(around.quiet | quiet))
        judgements = {
            version: v2.judge(newcomer, around, hearing, self.matcher) if version == "v2" else v2.Judgement(v1.decide(newcomer, around))
            for version in (self.version, self.shadow)
            if version is not None
        }
        if apart is not None:
            judgements = {version: await apart.held(judgement) for version, judgement in judgements.items()}
        # Up to here reports are as the matcher counts them, without what a model has given away; from here on as people see them.
        if shown:
            judgements = {version: _as_shown(judgement, shown) for version, judgement in judgements.items()}
        chosen = judgements[self.version]
        first = inquiry is None or inquiry.hear(newcomer)
        if self.shadow is not None and first:
            self._compare(newcomer, chosen.decision, judgements[self.shadow].decision)
        return chosen if inquiry is None else await _as_answered(inquiry, neighbourhood, newcomer, chosen, standing)

    def stored(self, exemplars: Sequence[Exemplar]) -> None:
        """The batch's newcomers are in the index: from now on their words count for good."""
        for exemplar in exemplars:
            lexicon = self._lexicons.get(exemplar.project)
            if lexicon is not None and exemplar.kind in HUMAN_KINDS:
                lexicon.add(wording_of(exemplar.title, exemplar.body))
            if lexicon is not None:
                self._checked[exemplar.project] = self._checked.get(exemplar.project, 0) + 1

    async def rarity(self, index: VectorIndex, project: str) -> Rarity:
        """The rarities of a project's words, for who judges outside the flow and holds the project's lock."""
        return await self._rarity(index, Neighbourhood(index, degraded=False), project)

    async def _rarity(self, index: VectorIndex, neighbourhood: Neighbourhood, project: str) -> Rarity:
        lexicon, count = self._lexicons.get(project), await index.count(project)
        off = abs(count - self._checked.get(project, 0))
        if lexicon is None or off > max(20, LEXICON_STALE_SHARE * count):
            lexicon = Lexicon()
            for exemplar in await index.exemplars(project, LEXICON_TEXTS_MAX):
                if exemplar.kind in HUMAN_KINDS:
                    lexicon.add(wording_of(exemplar.title, exemplar.body))
            self._lexicons[project] = lexicon
            self._checked[project] = count
        self._lexicons.move_to_end(project)
        while len(self._lexicons) > LEXICONS_MAX:
            self._checked.pop(self._lexicons.popitem(last=False)[0], None)
        return neighbourhood.listen(project, lexicon)

    def _compare(self, newcomer: Exemplar, decided: Decision, shadow: Decision) -> None:
        agreed = self.comparison.add(newcomer, decided, shadow)
        SHADOW.labels(self.shadow, str(agreed).lower()).inc()
        if not agreed:
            log.info(
                "grouping_shadow_differs", project=newcomer.project, signal_id=newcomer.signal_id, version=self.version,
                report_id=decided.report_id, reason=decided.reason, shadow=self.shadow, shadow_report_id=shadow.report_id,
                shadow_reason=shadow.reason,
            )  # fmt: skip


def _as_shown(judgement: v2.Judgement, shown: Shown) -> v2.Judgement:
    """The judgement naming the reports that its candidates are in."""

    def seen(items: Sequence[Candidate]) -> tuple[Candidate, ...]:
        return tuple(named.setdefault(id(item), replace(item, report_id=shown.get(item.report_id, item.report_id))) for item in items)

    named: dict[int, Candidate] = {}  # one that is in several lists stays one
    decision = judgement.decision
    report_id = None if decision.report_id is None else shown.get(decision.report_id, decision.report_id)
    return replace(
        judgement,
        decision=replace(decision, report_id=report_id, candidates=seen(decision.candidates)),
        unsure=seen(judgement.unsure),
        similar=seen(judgement.similar),
        ranked=seen(judgement.ranked),
    )


async def _as_answered(
    inquiry: Inquiry, neighbourhood: Neighbourhood, newcomer: Exemplar, judgement: v2.Judgement, standing: Standing
) -> v2.Judgement:
    """The judgement with the model's answer, where there is one that is still among what is likely."""
    # A sender's own fingerprint sets a report apart, also from what a model says.
    likely = tuple(item for item in judgement.unsure if not item.match.exemplar.explicit)
    if not likely:
        inquiry.sure(newcomer)
        return judgement
    joins = judgement.decision.report_id is not None
    answer = inquiry.about(newcomer, likely, joins=joins)
    if answer is None:
        return judgement
    named = answer.chosen
    if named is None:
        if not joins:
            return judgement
        inquiry.told.pop(newcomer.fingerprint, None)  # the reason says it itself
        return _kept_out(judgement)
    # The answer is about two texts. The report that the other one is in now may be another than when the question was put.
    report_id, _ = await standing(neighbourhood.as_decided(named))
    same_text = (item for item in likely if item.match.exemplar.fingerprint == named.fingerprint)
    same_report = (item for item in likely if item.match.exemplar.report_id == report_id)
    chosen = next(same_text, None) or next(same_report, None)
    if chosen is None:
        return judgement
    title = chosen.match.exemplar.title[:80]
    reason = f"a model was asked, as the matcher was unsure (probability {chosen.score:.2f}): the same problem as “{title}”"
    others = tuple(item for item in judgement.decision.candidates if item is not chosen)
    if chosen.report_id != judgement.decision.report_id:
        inquiry.given.add(newcomer.fingerprint)
    return replace(judgement, decision=Decision(Outcome.JOIN, chosen.report_id, reason, (chosen, *others)))


def _kept_out(judgement: v2.Judgement) -> v2.Judgement:
    """The judgement after a model has named none: a report opens, and the one that would have been joined is the first of its links."""
    best = judgement.ranked[0]
    reason = (
        f"a model was asked, as the matcher was unsure (probability {best.score:.2f} of “{best.match.exemplar.title[:80]}”), and named none"
    )
    similar = (best, *(item for item in judgement.similar if item.report_id != best.report_id))
    return replace(judgement, decision=Decision(Outcome.OPEN, None, reason, judgement.decision.candidates), similar=similar)
