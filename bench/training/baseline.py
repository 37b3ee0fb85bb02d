"""The TF-IDF baseline of the public data's `score.py`, without scikit-learn: the nearest earlier text, from a threshold on.

A test holds it against `score.py`'s own figures where that can run. Recall beyond the first place is added.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

BLOCK = 500  # rows between two counts of how rare words are, as in score.py
FIRST = 10
THRESHOLDS = [round(0.15 + 0.025 * step, 3) for step in range(33)]  # as score.py tries them
MIXES = ((1, 0), (1, 1), (3, 1))  # weights of title and text

_CAMEL = re.compile(r"([a-z0-9])([A-Z])")
_WORD = re.compile(r"[a-z][a-z0-9]+|[a-z]")

Mix = tuple[int, int]


@dataclass(frozen=True)
class Nearest:
    """For each row its first ten earlier rows (-1 where there is none) and their cosines, best first."""

    rows: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float32]

    def joined(self, threshold: float) -> list[int]:
        """A report's number for each row: that of the nearest, from the threshold on, else its own."""
        found = list(range(len(self.rows)))
        for number in found:
            if self.rows[number, 0] >= 0 and self.cosines[number, 0] >= threshold:
                found[number] = found[self.rows[number, 0]]
        return found


def figures(rows: list[dict[str, Any]], tune: list[dict[str, Any]], scored: range) -> dict[str, Any]:
    """Mix and threshold tuned on ``tune`` by attach F1; figures of the ``scored`` rows; also the best threshold there could have been."""
    gold, tune_gold = [str(row["group"]) for row in rows], [str(row["group"]) for row in tune]
    tuning, stream = {mix: nearest(tune, mix) for mix in MIXES}, {mix: nearest(rows, mix) for mix in MIXES}
    settings = [(mix, threshold) for mix in MIXES for threshold in THRESHOLDS]
    mix, threshold = max(settings, key=lambda one: attach(tune_gold, tuning[one[0]].joined(one[1]), range(len(tune)))["f1"])
    possible = [attach(gold, stream[one].joined(at), scored) for one, at in settings]
    return {
        "mix": mix,
        "threshold": threshold,
        "tuned": attach(gold, stream[mix].joined(threshold), scored),
        "best possible threshold": max(possible, key=lambda one: one["f1"]),
        "recall": _recall(stream[mix], gold, scored),
    }


def nearest(rows: list[dict[str, Any]], mix: Mix) -> Nearest:
    """The nearest earlier rows by the cosine of TF-IDF vectors."""
    words: dict[str, int] = {}
    title, text = (_counts([str(row.get(field) or "") for row in rows], words) for field in ("title", "text"))
    shape = (len(rows), max(1, len(words)))
    title.resize(shape)
    text.resize(shape)
    counts = (title * mix[0] + text * mix[1]).tocsr()
    present = counts.copy()
    present.data[:] = 1
    if mix != (1, 0):
        counts.data = 1 + np.log(np.maximum(counts.data, 1e-3))
    counts.data = np.maximum(counts.data, 0.05)
    frequency = np.zeros(shape[1])
    best, cosines = np.full((len(rows), FIRST), -1, np.int64), np.zeros((len(rows), FIRST), np.float32)
    for start in range(0, len(rows), BLOCK):
        end = min(len(rows), start + BLOCK)
        rarity = np.log((1 + start) / (1 + frequency)) + 1 if start else np.ones(shape[1])
        weighted = (counts[:end] @ sparse.diags(rarity.astype(np.float32))).tocsr()
        length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
        length[length == 0] = 1
        weighted = sparse.diags((1 / length).astype(np.float32)) @ weighted
        likeness = (weighted[start:end] @ weighted.T).toarray()
        for number in range(start, end):
            row = likeness[number - start, :number]
            order = np.argsort(-row, kind="stable")[:FIRST]
            best[number, : len(order)], cosines[number, : len(order)] = order, row[order]
        frequency += np.asarray(present[start:end].sum(0)).ravel()
    return Nearest(best, cosines)


def attach(gold: Sequence[str], found: Sequence[Any], scored: range) -> dict[str, float]:
    """Arrival-level figures: was "new problem?" and "which report?" decided rightly, given everything before it (as score.py counts)."""
    seen: set[str] = set()
    members: dict[Any, Counter[str]] = defaultdict(Counter)
    right = joined = needed = new = kept_new = 0
    for number, (label, report) in enumerate(zip(gold, found, strict=True)):
        if number in scored:
            known, joins = label in seen, bool(members[report])
            needed, joined = needed + known, joined + joins
            right += joins and known and members[report].most_common(1)[0][0] == label
            new, kept_new = new + (not known), kept_new + (not known and not joins)
        seen.add(label)
        members[report][label] += 1
    precision, recall = right / joined if joined else 0.0, right / needed if needed else 0.0
    return {
        "needed": needed,
        "joins": joined,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "false_merges": 1 - kept_new / new if new else 0.0,
    }


def _recall(found: Nearest, gold: Sequence[str], scored: range) -> list[float]:
    hits, needed, seen = np.zeros(3), 0, set()
    for number, label in enumerate(gold):
        if label in seen and number in scored:
            needed += 1
            right = [at >= 0 and gold[at] == label for at in found.rows[number]]
            hits += [any(right[:count]) for count in (1, 5, 10)]
        seen.add(label)
    return [float(hit) / max(1, needed) for hit in hits]


def _counts(texts: Sequence[str], words: dict[str, int]) -> Any:
    """Word counts [texts, words so far]; new words are added to ``words``."""
    columns: list[int] = []
    values: list[int] = []
    ends = [0]
    for text in texts:
        spaced = _CAMEL.sub(r"\1 \2", text).lower().replace("_", " ")
        counted = Counter(words.setdefault(word, len(words)) for word in _WORD.findall(spaced) if len(word) > 1)
        columns += counted.keys()
        values += counted.values()
        ends.append(len(columns))
    return sparse.csr_matrix((np.array(values, np.float32), columns, ends), shape=(len(texts), max(1, len(words))))
