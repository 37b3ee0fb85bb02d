"""How rare each word is in a project, learned from its own stream: inverse document frequencies, and the sparse vectors made with them.

A project's lexicon is bounded and can always be read anew from the vector index, so it is never the only copy. BM25's figures are those of
Robertson and Zaragoza (The Probabilistic Relevance Framework, 2009), k1 within their usual range, b lower than their .75 because
a long report with a log pasted in is not a worse one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from zlib import crc32

from loopwright_cluster.grouping.wording import Wording

K1 = 1.2
B = 0.6
LENGTH_USUAL = 120.0  # words of a usual report; fixed, so that a stored vector stays right while the project grows
TERMS_MAX = 400_000  # about 60 MB; beyond it what occurred once is forgotten, which makes it no commoner than it was
COMMON_SHARE = 0.3  # a word in more of the texts than this finds nobody

Sparse = Mapping[int, float]  # index -> weight; the index is a hash of the word


class Lexicon:
    """Document frequencies of one project. ``reports`` is the number of texts that were counted."""

    def __init__(self) -> None:
        self.reports = 0
        self._frequency: Counter[str] = Counter()

    def add(self, wording: Wording) -> None:
        """Count one more text."""
        self.reports += 1
        self._frequency.update(wording.counted)
        if len(self._frequency) > TERMS_MAX:
            self._frequency = Counter({term: count for term, count in self._frequency.items() if count > 1})

    def frequency(self, term: str) -> int:
        return self._frequency.get(term, 0)


class Rarity:
    """A lexicon together with texts that are decided but not stored yet. ``of`` is 0..about 1, whatever the size of the project."""

    def __init__(self, lexicon: Lexicon, pending: Sequence[Wording] = ()) -> None:
        self._lexicon = lexicon
        self._pending: Counter[str] = Counter()
        self._known: dict[str, float] = {}
        self._by_count: dict[int, float] = {}  # a term costs a logarithm, and few counts are shared by all terms
        self.reports = lexicon.reports
        for wording in pending:
            self.add(wording)

    def add(self, wording: Wording) -> None:
        self._pending.update(wording.counted)
        self._known.clear()
        self._by_count.clear()
        self.reports += 1

    def of(self, term: str) -> float:
        """The term's inverse document frequency over the greatest there can be in a project of this size."""
        found = self._known.get(term)
        if found is None:
            count = self._lexicon.frequency(term) + self._pending.get(term, 0)
            found = self._by_count.get(count)
            if found is None:
                found = math.log(1 + (self.reports - count + 0.5) / (count + 0.5)) / math.log(self.reports + 2)
                self._by_count[count] = found
            self._known[term] = found
        return found

    def finds(self, term: str) -> bool:
        """Whether the term is rare enough to search with."""
        count = self._lexicon.frequency(term) + self._pending.get(term, 0)
        return 0 < count <= max(20.0, COMMON_SHARE * self.reports)


def term_index(term: str) -> int:
    """A word's place in the sparse vectors: 31 bits of a hash, the same in every process."""
    return crc32(term.encode("utf-8", "replace")) & 0x7FFF_FFFF


def saturated(count: int, length: int) -> float:
    """BM25's weight of a word that occurs ``count`` times in a text of ``length`` words."""
    return count * (K1 + 1) / (count + K1 * (1 - B + B * length / LENGTH_USUAL))


def stored_vector(wording: Wording) -> Sparse:
    """The text as it is searched for: BM25's weights without rarity, which the query brings, so it is the project's and always current."""
    length = sum(wording.whole.values())
    return _summed((term, saturated(count, length)) for term, count in wording.whole.items())


def query_by_all(wording: Wording, rarity: Rarity) -> Sparse:
    """A search with every word of the text."""
    return _summed((term, rarity.of(term) * (1 + math.log(count))) for term, count in wording.whole.items() if rarity.finds(term))


def query_by_title(wording: Wording, rarity: Rarity) -> Sparse:
    """A search with the words of its title."""
    return _summed((term, rarity.of(term)) for term in wording.title if rarity.finds(term))


def _summed(terms: Iterable[tuple[str, float]]) -> Sparse:
    found: dict[int, float] = {}
    for term, weight in terms:
        index = term_index(term)
        found[index] = found.get(index, 0.0) + weight
    return found
