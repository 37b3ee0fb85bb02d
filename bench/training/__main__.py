"""Fits the matcher: `python -m bench.training FILE.jsonl [--rows N] [--out coefficients.json]`.

Only the first N rows (half of the file when not given) are looked at, their labels included; the rest is for `bench.grouping`. The strength
of the regularisation is chosen by five folds in time order within these rows. Prints how well the folds did; that, not the fit to the
training rows, is what to expect of other rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loopwright_cluster.grouping.features import FEATURES
from loopwright_cluster.grouping.matcher import STANDING, standing
from scipy.optimize import minimize

from bench.rows import load
from bench.training import baseline
from bench.training.examples import Array, Examples, examples_of

FOLDS = 5
RANK_STRENGTHS = (10.0, 30.0, 50.0, 100.0, 200.0)
RIGHT_STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
FALSE_MERGES_SHARE = 0.4  # of the baseline's false-merge rate; half is the most that is wanted, and other rows will differ
ASKED_SHARE = 0.2  # as adjudication.ASKED_SHARE
SUGGESTED_RECALL = 0.95
MODEL = Path(".cache/models/minilm-int8")
OUT = Path("services/cluster/src/loopwright_cluster/grouping/coefficients.json")


class Lists:
    """The pairs by new report: ``parts`` are slices into them, ``right`` says which pairs have one label."""

    def __init__(self, examples: Examples, labels: list[str]) -> None:
        self.right = np.array([labels[new] == labels[old] for new, old in zip(examples.new, examples.old, strict=True)])
        starts = [0, *(np.flatnonzero(np.diff(examples.new)) + 1)]
        self.parts = [slice(int(one), int(two)) for one, two in zip(starts, [*starts[1:], len(examples.new)], strict=True)]
        self.rows = np.array([examples.new[part.start] for part in self.parts])
        self.folds = self.rows * FOLDS // examples.rows
        seen: set[str] = set()
        self.known = np.zeros(len(labels), bool)
        for number, label in enumerate(labels):
            self.known[number] = label in seen
            seen.add(label)


def fit_rank(scaled: Array, lists: Lists, chosen: list[int], strength: float) -> Array:
    """The listwise softmax over the lists that hold a right pair."""
    parts = [lists.parts[at] for at in chosen if lists.right[lists.parts[at]].any()]
    rows = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    begin = np.cumsum([0, *(part.stop - part.start for part in parts)])[:-1]
    segment = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
    x, right = scaled[rows], lists.right[rows]

    def loss(weights: Array) -> tuple[float, Array]:
        score = x @ weights
        raised = np.exp(score - np.maximum.reduceat(score, begin)[segment])
        total, hit = np.add.reduceat(raised, begin), np.add.reduceat(raised * right, begin)
        gradient = x.T @ (raised / total[segment] - raised * right / hit[segment]) + strength * weights
        return float(-np.log(hit / total).sum() + 0.5 * strength * weights @ weights), gradient

    found: Array = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found


def fit_right(x: Array, right: Array, strength: float) -> tuple[Array, float]:
    """Logistic regression with an unpenalised bias."""

    def loss(weights: Array) -> tuple[float, Array]:
        score = x @ weights[:-1] + weights[-1]
        off = 1 / (1 + np.exp(-score)) - right
        value = np.logaddexp(0, score).sum() - score @ right + 0.5 * strength * weights[:-1] @ weights[:-1]
        return float(value), np.append(x.T @ off + strength * weights[:-1], off.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[:-1], float(found[-1])


def recalls(scores: Array, lists: Lists) -> list[float]:
    needed, hits = int(lists.known.sum()), np.zeros(3)
    for part in lists.parts:
        right = lists.right[part][np.argsort(-scores[part], kind="stable")]
        hits += [right[:count].any() for count in (1, 5, 10)]
    return [round(float(hit) / max(1, needed), 3) for hit in hits]


def log_loss(score: Array, right: Array) -> float:
    return float((np.logaddexp(0, score) - score * right).mean())


def thresholds(probability: Array, right: npt.NDArray[np.bool_], lists: Lists, baseline_false_merges: float) -> dict[str, Any]:
    """The operating points, from probabilities of rows that were held out.

    join: the greatest attach F1 among those with a false-merge rate of at most half the baseline's on the same rows, less a margin.
    ask: as many as may be asked about. suggest: nearly all of the known ones that the ranking has first.
    """
    known = lists.known[lists.rows]
    needed, new = int(lists.known.sum()), int((~lists.known).sum())
    order = np.argsort(-probability, kind="stable")
    count = np.arange(1, len(order) + 1)
    hits, wrong = np.cumsum(right[order]), np.cumsum(~known[order]) / new
    f1 = 2 * hits / (count + needed)
    limit = FALSE_MERGES_SHARE * baseline_false_merges
    allowed = np.flatnonzero(wrong <= limit)
    join = int(allowed[np.argmax(f1[allowed])]) if len(allowed) else 0
    ask = max(join, int(ASKED_SHARE * len(order)) - 1)
    suggest = max(ask, int(np.searchsorted(hits, SUGGESTED_RECALL * hits[-1])))
    rules = {
        "join": f"greatest attach F1 at a false-merge rate of {limit:.4f} at most, {FALSE_MERGES_SHARE} of the TF-IDF baseline's",
        "ask": f"the likeliest {ASKED_SHARE} of the new reports",
        "suggest": f"{SUGGESTED_RECALL} of the right best candidates",
    }
    return {
        name: {
            "from": float(f"{probability[order[at]]:.4g}"),
            "rule": rules[name],
            "held_out_attach_f1": round(float(f1[at]), 3),
            "held_out_false_merges": round(float(wrong[at]), 4),
        }
        for name, at in (("join", join), ("ask", ask), ("suggest", suggest))
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="train on the first so many rows (default: the first half)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="where vectors are kept between runs")
    options = parser.parse_args()
    rows = load(options.file)
    rows = rows[: options.rows or len(rows) // 2]
    labels = [str(row["group"]) for row in rows]
    examples = examples_of(rows, options.model, options.cache)
    lists = Lists(examples, labels)
    mean, deviation = examples.features.mean(axis=0), examples.features.std(axis=0) + 1e-6
    scaled = np.clip((examples.features - mean) / deviation, -5, 5)
    everything = list(range(len(lists.parts)))
    print(f"{len(rows)} rows, {int(lists.known.sum())} with an earlier mate, {len(examples.new)} pairs, {len(FEATURES)} features")

    best: tuple[float, float, Array] | None = None
    for strength in RANK_STRENGTHS:
        held_out = np.zeros(len(scaled))
        for fold in range(FOLDS):
            weights = fit_rank(scaled, lists, [at for at in everything if lists.folds[at] != fold], strength)
            for at in np.flatnonzero(lists.folds == fold):
                held_out[lists.parts[at]] = scaled[lists.parts[at]] @ weights
        found = recalls(held_out, lists)
        print(f"  ranking, strength {strength:5.0f}: held-out recall@1/5/10 {found}")
        if best is None or sum(found) > best[0]:
            best = (sum(found), strength, held_out)
    assert best is not None
    rank_strength, held_out = best[1], best[2]
    rank = fit_rank(scaled, lists, everything, rank_strength)

    # The second model sees the ranking as it is on rows the ranking was not fitted to: else it would trust it too much.
    orders = [np.argsort(-held_out[part], kind="stable") for part in lists.parts]
    stands = np.array([standing(scaled[part], held_out[part], order) for part, order in zip(lists.parts, orders, strict=True)])
    right = np.array([lists.right[part][order[0]] for part, order in zip(lists.parts, orders, strict=True)], float)
    standing_mean, standing_deviation = stands.mean(axis=0), stands.std(axis=0) + 1e-6
    stands = np.clip((stands - standing_mean) / standing_deviation, -5, 5)
    best_right: tuple[float, float] | None = None
    for strength in RIGHT_STRENGTHS:
        score = np.zeros(len(right))
        for fold in range(FOLDS):
            inside = lists.folds != fold
            weights, bias = fit_right(stands[inside], right[inside], strength)
            score[~inside] = stands[~inside] @ weights + bias
        loss = log_loss(score, right)
        print(f"  probability, strength {strength:5.0f}: held-out log loss {loss:.4f} (always the mean: {_entropy(right.mean()):.4f})")
        if best_right is None or loss < best_right[0]:
            best_right = (loss, strength)
    assert best_right is not None
    held_out_probability = np.zeros(len(right))
    for fold in range(FOLDS):
        inside = lists.folds != fold
        weights, bias = fit_right(stands[inside], right[inside], best_right[1])
        held_out_probability[~inside] = 1 / (1 + np.exp(-stands[~inside] @ weights - bias))
    compared = baseline.figures(rows, rows, range(len(rows)))
    bars = thresholds(held_out_probability, right.astype(bool), lists, compared["tuned"]["false_merges"])
    for name, bar in bars.items():
        print(f"  {name}: {bar}")
    weights, bias = fit_right(stands, right, best_right[1])
    data = {
        "origin": {
            "made_by": "python -m bench.training",
            "data": options.file.name,
            "rows": f"the first {len(rows)}",
            "pairs": len(examples.new),
            "right_pairs": int(lists.right.sum()),
            "rank_strength": rank_strength,
            "right_strength": best_right[1],
            "held_out_recall": recalls(held_out, lists),
            "held_out_log_loss": round(best_right[0], 4),
        },
        "thresholds": bars,
        "features": list(FEATURES),
        "standing": list(STANDING),
        "mean": _short(mean), "deviation": _short(deviation), "rank": _short(rank), "standing_mean": _short(standing_mean),
        "standing_deviation": _short(standing_deviation), "right": _short(weights), "right_bias": round(bias, 5),
    }  # fmt: skip
    options.out.write_text(json.dumps(data, indent=1) + "\n")
    print(f"written: {options.out}")


def _short(values: Array) -> list[float]:
    # What is nothing but rounding (the weight of a feature that no row has) differs between two runs.
    return [float(f"{value:.6g}") if abs(value) > 1e-9 else 0.0 for value in values]


def _entropy(share: float) -> float:
    return float(-share * np.log(share) - (1 - share) * np.log(1 - share))


if __name__ == "__main__":
    main()
