"""The TF-IDF baseline of the public data's `score.py` on the same rows, by its own functions; recall beyond the first place is added."""

from __future__ import annotations

from typing import Any

import numpy as np

THRESHOLDS = [round(0.15 + 0.025 * step, 3) for step in range(33)]  # as score.py tries them


def figures(score: Any, rows: list[dict[str, Any]], tune: list[dict[str, Any]], scored: range) -> dict[str, Any]:
    """Mix and threshold tuned on ``tune`` by attach F1; figures of the ``scored`` rows; also the best threshold there could have been."""
    gold, tune_gold = [row["group"] for row in rows], [row["group"] for row in tune]
    stream, tuning = score.Stream(rows), score.Stream(tune)
    settings = [(mix, threshold) for mix in score.MIXES for threshold in THRESHOLDS]
    index = list(scored)
    chosen = max(settings, key=lambda one: score.attach(tune_gold, tuning.clusters(*one), range(len(tune)))["attach_F1"])
    possible = [score.attach(gold, stream.clusters(*one), index) for one in settings]
    return {
        "tuned": score.attach(gold, stream.clusters(*chosen), index),
        "best possible threshold": max(possible, key=lambda one: one["attach_F1"]),
        "recall": _recall(score, stream, chosen[0], gold, scored),
    }


def _recall(score: Any, stream: Any, mix: tuple[float, float, float], gold: list[str], scored: range) -> list[float]:
    """The weighting of score.py's `Stream.nn`, with the first ten instead of the first."""
    from scipy import sparse

    parts = stream.mats()
    counts = (parts["title"] * mix[0] + parts["text"] * mix[1] + parts["frames"] * mix[2]).tocsr()
    present = counts.copy()
    present.data[:] = 1
    if mix[0] > 1 or mix[1] or mix[2]:
        counts.data = 1 + np.log(np.maximum(counts.data, 1e-3))
    counts.data = np.maximum(counts.data, 0.05)
    frequency, hits, needed, seen = np.zeros(counts.shape[1]), np.zeros(3), 0, set()
    for start in range(0, counts.shape[0], score.BLOCK):
        end = min(counts.shape[0], start + score.BLOCK)
        rarity = np.log((1 + start) / (1 + frequency)) + 1 if start else np.ones(counts.shape[1])
        weighted = (counts[:end] @ sparse.diags(rarity.astype(np.float32))).tocsr()
        length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
        length[length == 0] = 1
        weighted = sparse.diags((1 / length).astype(np.float32)) @ weighted
        likeness = (weighted[start:end] @ weighted.T).toarray()
        for number in range(start, end):
            if gold[number] in seen and number in scored:
                needed += 1
                best = np.argsort(-likeness[number - start, :number], kind="stable")[:10]
                right = [gold[at] == gold[number] for at in best]
                hits += [any(right[:count]) for count in (1, 5, 10)]
            seen.add(gold[number])
        frequency += np.asarray(present[start:end].sum(0)).ravel()
    return [float(hit) / max(1, needed) for hit in hits]
