"""Which of the candidates a report belongs to, and how probable that is: two small linear models out of `coefficients.json`.

The first ranks the candidates of one report against each other (listwise softmax: Cao et al. 2007, "Learning to rank: from pairwise to
listwise approach"). The second says how probable it is that the first of them is right (logistic regression on its features and on how far
it stands out). Both were fitted by `python -m bench.training`; the file says on what, when and how well. No part of this reads anything but
figures, so it can be evaluated anywhere in microseconds and explained term by term.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from loopwright_cluster.grouping.features import FEATURES

Array = npt.NDArray[np.float64]
# What the second model sees of the best candidate: a few that say the same of any project. With all features, the held-out folds'
# log loss was the same (.0775), and .15 of the twenty likeliest were right instead of .25.
BEST = (
    "title_cosine", "words_cosine", "meaning", "title_letters", "prose_cosine", "lines", "errors_share", "names_cosine", "days_log",
    "rarest_4", "title_in_old", "title_in_new",
)  # fmt: skip
STANDING = (*BEST, "score", "margin", "above_ten", "share_log", "above_median", "next_likeness")  # the last six: among its candidates
_BEST_AT = [FEATURES.index(name) for name in BEST]
CLIP = 5.0  # standard deviations: no single strange figure decides


@dataclass(frozen=True)
class Ranking:
    """``order`` of the candidates, best first; ``scores`` along it; ``probabilities`` along it that each is the right one."""

    order: npt.NDArray[np.int64]
    scores: Array
    probabilities: Array


@dataclass(frozen=True)
class Thresholds:
    """The probabilities from which the best candidate is joined, a model asked, candidates suggested; the training says by what rule."""

    join: float
    ask: float
    suggest: float


@dataclass(frozen=True)
class Matcher:
    """The coefficients. ``mean`` and ``deviation`` [features] standardise; ``rank`` [features]; the rest is the second model's."""

    mean: Array
    deviation: Array
    rank: Array
    standing_mean: Array
    standing_deviation: Array
    right: Array
    right_bias: float
    thresholds: Thresholds

    def joining_from(self, probability: float) -> Matcher:
        """The same matcher with another threshold for joining; who is suggested or asked about from a higher one is so from there."""
        bars = self.thresholds
        return replace(self, thresholds=Thresholds(probability, min(bars.ask, probability), min(bars.suggest, probability)))

    def scaled(self, features: Array) -> Array:
        """Features in standard deviations from their mean, clipped."""
        return np.clip((features - self.mean) / self.deviation, -CLIP, CLIP)

    def ranked(self, features: Array) -> Ranking:
        """Rank candidates given their features [candidates, features]."""
        scaled = self.scaled(features)
        scores = scaled @ self.rank
        order = np.argsort(-scores, kind="stable")
        if not len(order):
            return Ranking(order, scores, scores)
        right = 1 / (1 + np.exp(-float(self.right @ self._standing(scaled, scores, order)) - self.right_bias))
        shares = np.exp(scores[order] - scores[order[0]])
        # The others get of the first one's probability what the ranking gives them of its share.
        return Ranking(order, scores[order], right * shares)

    def _standing(self, scaled: Array, scores: Array, order: npt.NDArray[np.int64]) -> Array:
        return np.clip((standing(scaled, scores, order) - self.standing_mean) / self.standing_deviation, -CLIP, CLIP)

    def because(self, features: Array, best: int, count: int) -> list[tuple[str, float]]:
        """The features that spoke most for the best candidate against the average one: (name, value), most telling first."""
        gain = (self.scaled(features)[best] - self.scaled(features).mean(axis=0)) * self.rank
        return [(FEATURES[at], float(features[best, at])) for at in np.argsort(-gain)[:count] if gain[at] > 0]


def standing(scaled: Array, scores: Array, order: npt.NDArray[np.int64]) -> Array:
    """The second model's view: some of the best candidate's features, then how it stands among the others (`STANDING`)."""
    found = scores[order]
    shares = np.exp(found - found[0])
    likeness = scaled[order[1:4], FEATURES.index("words_cosine")]
    among = [
        found[0],
        found[0] - found[1] if len(found) > 1 else 0.0,
        found[0] - found[:10].mean(),
        -np.log(shares.sum()),
        found[0] - np.median(found),
        likeness.mean() if len(likeness) else 0.0,
    ]
    return np.concatenate([scaled[order[0], _BEST_AT], among])


def from_json(data: dict[str, Any]) -> Matcher:
    """The matcher out of its file. Raises ValueError when it was fitted to other features than this version computes."""
    if tuple(data["features"]) != FEATURES or tuple(data["standing"]) != STANDING:
        raise ValueError("coefficients.json was fitted to other features; run python -m bench.training")
    named = {name: np.array(data[name]) for name in ("mean", "deviation", "rank", "standing_mean", "standing_deviation", "right")}
    found = data["thresholds"]
    thresholds = Thresholds(*(float(found[name]["from"]) for name in ("join", "ask", "suggest")))
    return Matcher(**named, right_bias=float(data["right_bias"]), thresholds=thresholds)


@lru_cache(maxsize=1)
def fitted() -> Matcher:
    """The matcher that comes with this version."""
    return from_json(json.loads(files(__package__).joinpath("coefficients.json").read_text("utf-8")))
