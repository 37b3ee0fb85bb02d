"""Examples for the matcher from a labelled stream: each report with its candidates, as the product finds and compares them.

The searches are made by brute force here (the index is exact too, so both find the same); the features are the product's own functions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.embedding.minilm import OnnxEncoder
from loopwright_cluster.grouping.describe import describe
from loopwright_cluster.grouping.features import FEATURES, Text, compare, crowding_of
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.grouping.lexicon import Lexicon, Rarity, query_by_all, query_by_title, stored_vector
from loopwright_cluster.grouping.v2 import CANDIDATES_EACH, LEXICON_REPORTS_MIN
from loopwright_cluster.grouping.wording import read

from bench.rows import kinds_of, signal_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """``features`` [pairs, FEATURES]; ``new`` and ``old`` number the rows of each pair, those of one new report side by side."""

    features: Array
    new: npt.NDArray[np.int64]
    old: npt.NDArray[np.int64]
    rows: int


def embed(texts: Sequence[str], model: Path, cache: Path) -> npt.NDArray[np.float32]:
    """The product's vectors of the texts; kept in ``cache`` under a hash of all of them, as they take minutes."""
    name = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:16]
    kept = cache / f"vectors-{name}.npy"
    if kept.exists():
        found: npt.NDArray[np.float32] = np.load(kept)
        return found
    encoder = OnnxEncoder(model / "model.onnx", model / "tokenizer.json")
    vectors = np.concatenate([encoder.encode(texts[start : start + 200]) for start in range(0, len(texts), 200)])
    cache.mkdir(parents=True, exist_ok=True)
    np.save(kept, vectors)
    return vectors


class _Words:
    """The sparse searches of the index, by postings."""

    def __init__(self) -> None:
        self._postings: dict[int, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        self._count = 0

    def add(self, vector: Any) -> None:
        for index, weight in vector.items():
            numbers, weights = self._postings[index]
            numbers.append(self._count)
            weights.append(weight)
        self._count += 1

    def best(self, query: Any, limit: int) -> list[int]:
        scores = np.zeros(self._count)
        for index, weight in query.items():
            if index in self._postings:
                numbers, weights = self._postings[index]
                scores[numbers] += weight * np.asarray(weights)
        found = np.argsort(-scores, kind="stable")[:limit]
        return [int(number) for number in found if scores[number] > 0]


def exemplars_of(rows: list[dict[str, Any]]) -> list[Exemplar]:
    """The rows as the product describes them."""
    signals = [signal_of(number, row, kind) for number, (row, kind) in enumerate(zip(rows, kinds_of(rows), strict=True))]
    return [describe(signal, fingerprint(signal)) for signal in signals]


def examples_of(exemplars: Sequence[Exemplar], vectors: npt.NDArray[np.float32], only: Set[int] | None = None) -> Examples:
    """Stream the texts; each is compared with what came before it, then becomes a candidate itself. ``only``: compare these alone."""
    lexicon, words = Lexicon(), _Words()
    texts: list[Text] = []
    features, new, old = [], [], []
    for number, exemplar in enumerate(exemplars):
        wording = read(exemplar.title, exemplar.body)
        text = Text(wording, exemplar.occurred_at)
        if number >= LEXICON_REPORTS_MIN and (only is None or number in only):
            rarity = Rarity(lexicon)
            cosines = vectors[:number] @ vectors[number]
            found = dict.fromkeys(int(at) for at in np.argsort(-cosines, kind="stable")[:CANDIDATES_EACH])
            for query in (query_by_all(wording, rarity), query_by_title(wording, rarity)):
                found |= dict.fromkeys(words.best(query, CANDIDATES_EACH))
            chosen = sorted(found, key=lambda at: -cosines[at])
            said = [round(float(cosines[at]), 4) for at in chosen]
            features.append(compare(text, [texts[at] for at in chosen], said, crowding_of(vectors[chosen]), rarity))
            new += [number] * len(chosen)
            old += chosen
        lexicon.add(wording)
        words.add(stored_vector(wording))
        texts.append(text)
    return Examples(np.vstack(features) if features else np.zeros((0, len(FEATURES))), np.array(new), np.array(old), len(exemplars))
