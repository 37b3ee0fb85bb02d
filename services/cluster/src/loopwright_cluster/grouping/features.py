"""What two texts by people have in common, as figures without a scale: shares, rarities 0..1, ranks and margins among the candidates.

Pure. The names of the features are the columns of the matcher's coefficients; a person sees them in `reports explain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loopwright_cluster.grouping.lexicon import Rarity, saturated
from loopwright_cluster.grouping.wording import Wording

FEATURES = (
    "title_share_new", "title_share_old", "title_cosine", "title_in_old", "title_in_new", "words_cosine", "words_share_new",
    "words_share_old", "rarest", "rarest_2", "rarest_4", "rarest_8", "title_rarest", "title_rarest_2", "title_rarest_3", "names",
    "name_rarest", "names_cosine", "title_names", "title_name_rarest", "title_name_both", "title_names_differ", "quotes", "lines",
    "line_rarest", "title_pairs", "errors", "errors_share", "title_letters", "code_cosine", "prose_cosine", "days_log", "length_new",
    "length_old", "length_differs", "code_new", "code_old", "search_all", "search_all_rank", "search_title", "search_title_rank",
    "meaning", "meaning_margin", "meaning_stands_out", "meaning_rank",
    "own_meaning", "own_meaning_margin", "own_meaning_stands_out", "own_meaning_rank",
)  # fmt: skip

Features = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """One side of a pair; ``occurred_at`` in epoch seconds."""

    wording: Wording
    occurred_at: float


@dataclass(frozen=True)
class _Weighed:
    """Sums over one text that every pair with it needs."""

    title: float
    title_squares: float
    words: float
    words_squares: float
    names_squares: float
    errors: float
    code_squares: float
    prose_squares: float


def compare(newcomer: Text, others: Sequence[Text], cosines: Sequence[float], crowding: Sequence[float], rarity: Rarity) -> Features:
    """Return [len(others), len(FEATURES)]: the newcomer against each candidate.

    ``cosines`` are those of their embeddings, -1..1; ``crowding`` is of the same candidates, as `crowding_of` has it. What is near to
    everything that is found is near to nothing in particular: `own_meaning` is the cosine without that.
    """
    if not others:
        return np.zeros((0, len(FEATURES)))
    own = _weigh(newcomer.wording, rarity)
    rows = np.array([_pair(newcomer, own, other, rarity) for other in others])
    by_all = np.array([_search(newcomer.wording.whole, other.wording, rarity) for other in others])
    by_title = np.array([_search(dict.fromkeys(newcomer.wording.title, 1), other.wording, rarity) for other in others])
    cosine = np.asarray(cosines, np.float64)
    among = np.stack(
        [_share_of_best(by_all), _ranks(by_all), _share_of_best(by_title), _ranks(by_title),
         *_standing_out(cosine), *_standing_out(cosine - np.asarray(crowding, np.float64))], axis=1,
    )  # fmt: skip
    return np.hstack([rows, among])


def crowding_of(vectors: npt.NDArray[np.float32]) -> list[float]:
    """Each vector's mean cosine to the others; ``vectors`` [candidates, dimensions] of unit length. To four places, as cosines are.

    A measure of hubs in nearest-neighbour searches: Schnitzer et al. 2012, "Local and global scaling reduce hubs in space".
    """
    if len(vectors) < 2:
        return [0.0] * len(vectors)
    exact = vectors.astype(np.float64)  # so that the order of the candidates does not show in the rounded figures
    return [round(float(sum_of), 4) for sum_of in (np.vecdot(exact, exact.sum(axis=0)) - 1.0) / (len(exact) - 1)]


def _standing_out(cosine: Features) -> list[Features]:
    spread = float(cosine.std()) or 1.0
    return [cosine, cosine.max() - cosine, (cosine - cosine.mean()) / spread, _ranks(cosine)]


def _pair(new: Text, own: _Weighed, old: Text, rarity: Rarity) -> list[float]:
    one, two, of = new.wording, old.wording, rarity.of
    his = _weigh(two, rarity)
    shared = one.whole.keys() & two.whole.keys()
    weights = {term: of(term) for term in shared}
    in_titles = [weights[term] for term in one.title & two.title]
    shared_sum = sum(weights.values())
    rare, rare_title = _greatest(weights.values(), 8), _greatest(in_titles, 3)
    names = [of(f"n:{name}") for name in one.names & two.names]
    title_names = [of(f"n:{name}") for name in (one.title_names & two.names) | (two.title_names & one.names)]
    both = bool(one.title_names & two.title_names)
    lines = [of(f"l:{line}") for line in one.lines & two.lines]
    errors = sum(of(f"e:{first} {second}") for first, second in one.error_pairs & two.error_pairs)
    length_new, length_old = math.log1p(one.length), math.log1p(two.length)
    squares = sum(weight**2 * (1 + math.log(one.whole[term])) * (1 + math.log(two.whole[term])) for term, weight in weights.items())
    return [
        _over(sum(in_titles), own.title),
        _over(sum(in_titles), his.title),
        _over(sum(weight**2 for weight in in_titles), math.sqrt(own.title_squares * his.title_squares)),
        _over(sum(weights[term] for term in one.title & shared), own.title),
        _over(sum(weights[term] for term in two.title & shared), his.title),
        _over(squares, math.sqrt(own.words_squares * his.words_squares)),
        _over(shared_sum, own.words),
        _over(shared_sum, his.words),
        rare[0], rare[1], rare[3], rare[7],
        *rare_title,
        math.log1p(sum(names)),
        max(names, default=0.0),
        _over(sum(weight**2 for weight in names), math.sqrt(own.names_squares * his.names_squares)),
        math.log1p(sum(title_names)),
        max(title_names, default=0.0),
        float(both),
        float(bool(one.title_names and two.title_names and not both)),
        math.log1p(sum(of(f"n:{quote}") for quote in one.quotes & two.quotes)),
        math.log1p(sum(lines)),
        max(lines, default=0.0),
        math.log1p(sum(of(f"b:{first} {second}") for first, second in one.title_pairs & two.title_pairs)),
        math.log1p(errors),
        _over(errors, min(own.errors, his.errors)),
        _over(2 * len(one.title_grams & two.title_grams), len(one.title_grams) + len(two.title_grams)),
        _over(_squares(one.code & two.code, rarity), math.sqrt(own.code_squares * his.code_squares)),
        _over(_squares(one.prose & two.prose, rarity), math.sqrt(own.prose_squares * his.prose_squares)),
        math.log1p(abs(new.occurred_at - old.occurred_at) / 86_400),
        length_new, length_old, abs(length_new - length_old),
        float(bool(one.code)), float(bool(two.code)),
    ]  # fmt: skip


def _weigh(wording: Wording, rarity: Rarity) -> _Weighed:
    of = rarity.of
    title = [of(term) for term in wording.title]
    words = {term: of(term) for term in wording.whole}
    return _Weighed(
        title=sum(title),
        title_squares=sum(weight**2 for weight in title),
        words=sum(words.values()),
        words_squares=sum((weight * (1 + math.log(wording.whole[term]))) ** 2 for term, weight in words.items()),
        names_squares=sum(of(f"n:{name}") ** 2 for name in wording.names),
        errors=sum(of(f"e:{first} {second}") for first, second in wording.error_pairs),
        code_squares=_squares(wording.code, rarity),
        prose_squares=_squares(wording.prose, rarity),
    )


def _squares(terms: Set[str], rarity: Rarity) -> float:
    return sum(rarity.of(term) ** 2 for term in terms)


def _search(query: Mapping[str, int], stored: Wording, rarity: Rarity) -> float:
    """BM25, as the index scores it."""
    length = sum(stored.whole.values())
    return sum(
        rarity.of(term) * (1 + math.log(query[term])) * saturated(stored.whole[term], length) for term in query.keys() & stored.whole.keys()
    )


def _greatest(weights: Iterable[float], count: int) -> list[float]:
    best = sorted(weights, reverse=True)[:count]
    return best + [0.0] * (count - len(best))


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share_of_best(scores: Features) -> Features:
    best = float(scores.max())
    return scores / best if best > 0 else scores


def _ranks(scores: Features) -> Features:
    """1 for the best, then 1 over the root of the rank: the difference between first and second says more than that of 30th and 31st."""
    # Equals share a rank, else the order in which candidates were handed in would decide.
    rank = 1 + np.searchsorted(np.sort(-scores), -scores)
    return 1 / np.sqrt(rank)
