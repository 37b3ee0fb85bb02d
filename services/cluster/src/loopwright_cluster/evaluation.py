"""How a version of the grouping decides what people have decided: their words are labelled pairs of fingerprints.

Of each word that holds, the fingerprints of its two sides are paired, as they were when it was said: a merge says that they are the same,
a split and a never_together that they are not, a move both (with what it went to, and with what it left). Where two words speak of one
pair the newer one counts. Each pair is judged alone, the later one as the newcomer, by the very rules and matcher, with the project's own
rarities; so what the rest of the project would add (rivals, ranks among many) is not in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from loopwright_common.contracts.queries import EvaluationAnswer, EvaluationQuery, LabelledPair

from loopwright_cluster.domain import Exemplar, Match, Outcome
from loopwright_cluster.grouping import v1, v2
from loopwright_cluster.grouping.lexicon import Rarity
from loopwright_cluster.grouping.matcher import Matcher
from loopwright_cluster.grouping.v1 import HUMAN_KINDS, Surroundings
from loopwright_cluster.handlers import ProjectLocks
from loopwright_cluster.judging import Judging
from loopwright_cluster.ports import Embedding, VectorIndex
from loopwright_cluster.records import FingerprintRecord, Records
from loopwright_cluster.word_records import WordRecord, Words

PAIRS_EACH_MAX = 1_000  # of those that are the same, and of those that are not: one never_together of large reports is not the whole
EXEMPLARS_MAX = 250  # texts to embed, two seconds of a core: an answer has to come within ten
SIDE_MAX = 14  # fingerprints of a side of one word, those that were known first: some 200 pairs, so that one word is not the whole
SIDE_READ_MAX = 56  # records read to find those
EMBEDDED_AT_ONCE = 8  # as in the ordered flow, which goes on meanwhile
NAMES_AT_ONCE = 64
PAIRS_SHOWN_MAX = 200


@dataclass(frozen=True)
class Labelled:
    """Two fingerprints' records, and what a person says of them."""

    command_id: str
    earlier: FingerprintRecord
    later: FingerprintRecord
    same: bool


class Evaluation:
    """Answers from the words, the records and the index; writes nothing."""

    def __init__(
        self, records: Records, words: Words, embedding: Embedding, index: VectorIndex, judging: Judging, locks: ProjectLocks
    ) -> None:
        self._records = records
        self._words = words
        self._embedding = embedding
        self._index = index
        self._judging = judging
        self._locks = locks

    async def answer(self, query: EvaluationQuery) -> EvaluationAnswer:
        """Counts over the labelled pairs, and some of the pairs, the wrongly decided first."""
        version = query.version or self._judging.version
        pairs, truncated = await self._labelled(query.project)
        judged = [pair async for pair in self._judge(query.project, version, pairs)] if pairs else []
        same, apart = [pair for pair in judged if pair.same], [pair for pair in judged if not pair.same]
        return EvaluationAnswer(
            version=version,
            same=len(same),
            same_joined=sum(pair.would_join for pair in same),
            apart=len(apart),
            apart_joined=sum(pair.would_join for pair in apart),
            pairs=tuple(sorted(judged, key=lambda pair: pair.same is pair.would_join)[:PAIRS_SHOWN_MAX]),
            truncated=truncated,
            degraded=self._embedding.degraded,
        )

    async def _labelled(self, project: str) -> tuple[list[Labelled], bool]:
        """The pairs, those of the newest word first, and whether there are more."""
        words = [word for word in await self._words.all_of(project) if word.holds and word.done_at is not None]
        sides = _Sides(self._records, project)
        if words:
            await sides.load()
        found: dict[tuple[str, str], Labelled] = {}
        shown: set[str] = set()
        count = {True: 0, False: 0}
        full = False
        for word in reversed(words):
            for one_side, other_side, same in await sides.of(word):
                for one in one_side:
                    for other in other_side:
                        earlier, later = sorted((one, other), key=lambda record: (record.decided_at, _key(record)))
                        names = (_key(earlier), _key(later))
                        if names[0] == names[1] or names in found:
                            continue
                        if count[same] == PAIRS_EACH_MAX or len(shown | set(names)) > EXEMPLARS_MAX:
                            full = True
                            continue
                        count[same] += 1
                        shown.update(names)
                        found[names] = Labelled(word.command_id, earlier, later, same)
        return list(found.values()), full or sides.truncated

    async def _judge(self, project: str, version: str, pairs: Sequence[Labelled]) -> AsyncIterator[LabelledPair]:
        exemplars = {_key(record): Exemplar.from_payload(record.exemplar) for pair in pairs for record in (pair.earlier, pair.later)}
        vectors = await self._vectors(list(exemplars.values()))
        rarity = None
        if version == "v2" and any(item.kind in HUMAN_KINDS for item in exemplars.values()):
            async with self._locks.of(project):
                rarity = await self._judging.rarity(self._index, project)
        spread = await self._spread(project, [(exemplars[_key(pair.earlier)], exemplars[_key(pair.later)]) for pair in pairs])
        for number, pair in enumerate(pairs):
            newcomer, other = exemplars[_key(pair.later)], exemplars[_key(pair.earlier)]
            cosine = float(vectors[newcomer.fingerprint] @ vectors[other.fingerprint])
            match, matcher = Match(other, round(cosine, 4)), self._judging.matcher
            judgement = _alone(version, newcomer, match, spread, rarity, matcher, degraded=self._embedding.degraded)
            yield LabelledPair(
                command_id=pair.command_id,
                fingerprint=newcomer.fingerprint,
                other_fingerprint=other.fingerprint,
                title=newcomer.title[:512],
                other_title=other.title[:512],
                same=pair.same,
                would_join=judgement.decision.outcome is Outcome.JOIN,
                probability=judgement.probability,
                reason=judgement.decision.reason[:2_048],
            )
            if number % 20 == 0:
                await asyncio.sleep(0)  # signals go on being grouped

    async def _vectors(self, exemplars: Sequence[Exemplar]) -> dict[str, npt.NDArray[np.float32]]:
        found: dict[str, npt.NDArray[np.float32]] = {}
        for start in range(0, len(exemplars), EMBEDDED_AT_ONCE):
            chunk = exemplars[start : start + EMBEDDED_AT_ONCE]
            rows = await self._embedding.embed([item.text for item in chunk])
            found |= {item.fingerprint: row for item, row in zip(chunk, rows, strict=True)}
        return found

    async def _spread(self, project: str, pairs: Sequence[tuple[Exemplar, Exemplar]]) -> dict[str, int]:
        names = sorted({name for one, other in pairs for name in one.anchors.keys() & other.anchors.keys()})
        found: dict[str, int] = {}
        for start in range(0, len(names), NAMES_AT_ONCE):
            spread = await self._index.spread(project, names[start : start + NAMES_AT_ONCE])
            found |= {name: len(reports) for name, reports in spread.items()}
        return found


def _alone(
    version: str,
    newcomer: Exemplar,
    match: Match,
    spread: dict[str, int],
    rarity: Rarity | None,
    matcher: Matcher,
    *,
    degraded: bool,
) -> v2.Judgement:
    """What the version says when the other is all there is."""
    other = match.exemplar
    # They may be in one report by now; for the rules the other is in one, and the newcomer in none yet.
    alone = Match(other.in_report(f"of-{other.signal_id}"[:64]), match.similarity)
    same_kind = {alone.exemplar.report_id: [alone]} if other.kind == newcomer.kind else {}
    around = Surroundings([alone], same_kind, spread, frozenset(), degraded)
    if version == "v1":
        return v2.Judgement(v1.decide(newcomer, around))
    return v2.judge(newcomer, around, v2.Hearing([alone] if other.kind in HUMAN_KINDS else [], rarity), matcher)


def _key(record: FingerprintRecord) -> str:
    return str(record.exemplar["fingerprint"])


class _Sides:
    """Which fingerprints the reports of a word held when it was said, as far as they are still there."""

    def __init__(self, records: Records, project: str) -> None:
        self._records = records
        self._project = project
        self._held: dict[str, list[str]] = {}  # report -> the fingerprints that lead to it by merges
        self._read: dict[str, FingerprintRecord | None] = {}
        self.truncated = False

    async def load(self) -> None:
        chains: dict[str, list[str]] = {}
        for fingerprint, pointer in (await self._records.fingerprints_of(self._project)).items():
            if pointer.report_id not in chains:
                chains[pointer.report_id] = await self._records.merged(self._project, pointer.report_id)
            for report_id in chains[pointer.report_id]:
                self._held.setdefault(report_id, []).append(fingerprint)

    async def of(self, word: WordRecord) -> list[tuple[list[FingerprintRecord], list[FingerprintRecord], bool]]:
        """Pairs of sides with what the word says of them."""
        assert word.done_at is not None
        source, target = self._held.get(word.source, []), self._held.get(word.target, [])
        if word.action == "merge":
            stayed = [name for name in target if name not in set(source)]
            return [(await self._known(source, word.done_at), await self._known(stayed, word.done_at), True)]
        if word.action == "never_together":
            return [(await self._known(source, word.done_at), await self._known(target, word.done_at), False)]
        there = set(target)
        moved = [name for name in word.moved if name in there]
        left = [name for name in source if name not in word.moved and name not in there]
        sides = [(await self._known(moved, word.done_at), await self._known(left, word.done_at), False)]
        if word.action == "move":
            received = [name for name in target if name not in word.moved]
            sides.append((await self._known(moved, word.done_at), await self._known(received, word.done_at), True))
        return sides

    async def _known(self, fingerprints: Sequence[str], at: datetime) -> list[FingerprintRecord]:
        names = sorted(fingerprints)[:SIDE_READ_MAX]
        for name in names:
            if name not in self._read:
                self._read[name] = await self._records.fingerprint(self._project, name)
        known = [record for name in names if (record := self._read[name]) is not None and record.decided_at <= at]
        self.truncated = self.truncated or len(fingerprints) > len(names) or len(known) > SIDE_MAX
        return sorted(known, key=lambda record: (record.decided_at, _key(record)))[:SIDE_MAX]
