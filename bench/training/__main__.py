"""Fits the matcher: `python -m bench.training FILE.jsonl [--rows N] [--gitbugs FOLDER/PROJECT ...] [--out coefficients.json]`.

Of the file only the first N rows (half of it when not given) are looked at, their labels included; the rest is for `bench.grouping`. With
`--gitbugs` further projects' reports are learned from as well (see `gitbugs`). Every stream is also learned from backwards, where a report
with a later mate is the newcomer: likeness has no direction, and right pairs are few.

The strength of the regularisation is chosen by five folds in time order within each stream. Prints how well the folds did; that, not the
fit to the training rows, is what to expect of other rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loopwright_cluster.grouping.features import FEATURES
from loopwright_cluster.grouping.matcher import CLIP, STANDING, standing
from scipy.optimize import minimize

from bench.rows import load
from bench.training import gitbugs
from bench.training.examples import Array, embed, examples_of, exemplars_of

FOLDS = 5
BACKWARDS = -1  # the fold of lists that are only learned from
RANK_STRENGTHS = (10.0, 30.0, 60.0, 100.0, 200.0)
RIGHT_STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
FALSE_MERGES_MAX = 1 / 15  # of the new problems: half of what a TF-IDF search makes where its attach F1 is best, one in seven
ASKED_SHARE = 0.2  # as adjudication.ASKED_SHARE
SUGGESTED_RECALL = 0.95
MODEL = Path(".cache/models/minilm-int8")
OUT = Path("services/cluster/src/loopwright_cluster/grouping/coefficients.json")


class Lists:
    """New reports, each with its candidates' features; those of several streams behind each other.

    ``parts`` are slices into the pairs, ``right`` says which pairs have one label. Of each list: ``stream``, its number; ``known``, whether
    an earlier report has its label; ``fold``, in which it is held out; ``kept_from``, the folds whose held-out reports have its label.
    """

    def __init__(self) -> None:
        self.features: list[Array] = []
        self.right: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self.parts: list[slice] = []
        self.known: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self.fold: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.kept_from: list[set[int]] = []
        self.needed = 0
        self.stream: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, rows: list[dict[str, Any]], model: Path, cache: Path) -> None:
        """Append a stream, rows in time order, forwards and backwards."""
        number = int(self.stream.max()) + 1 if len(self.stream) else 0
        exemplars = exemplars_of(rows)
        vectors = embed([item.text for item in exemplars], model, cache)
        labels = [str(row["group"]) for row in rows]
        again = _again(labels)
        folds: dict[str, set[int]] = {}
        for at in again:
            folds.setdefault(labels[at], set()).add(at * FOLDS // len(labels))
        for backwards in (False, True):
            step = -1 if backwards else 1
            ordered, of = labels[::step], _again(labels[::step])
            examples = examples_of(exemplars[::step], vectors[::step], of if backwards else None)
            right = np.array([ordered[new] == ordered[old] for new, old in zip(examples.new, examples.old, strict=True)], bool)
            starts = [0, *(np.flatnonzero(np.diff(examples.new)) + 1), len(examples.new)]
            pairs = len(self.right)
            for one, two in itertools.pairwise(starts):
                row = int(examples.new[one])
                self.parts.append(slice(pairs + int(one), pairs + int(two)))
                self.stream = np.append(self.stream, number)
                self.known = np.append(self.known, row in of)
                self.fold = np.append(self.fold, BACKWARDS if backwards else row * FOLDS // len(labels))
                self.kept_from.append(folds.get(ordered[row], set()))
            self.features.append(examples.features)
            self.right = np.append(self.right, right)
            self.needed += 0 if backwards else len(of)

    @property
    def forwards(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.fold != BACKWARDS)

    def outside(self, fold: int) -> list[int]:
        """The lists that may be learned from for this fold."""
        return [at for at in range(len(self.parts)) if self.fold[at] != fold and (self.fold[at] >= 0 or fold not in self.kept_from[at])]


def _again(labels: list[str]) -> set[int]:
    """The numbers of those whose label came before."""
    seen: set[str] = set()
    found = set()
    for number, label in enumerate(labels):
        if label in seen:
            found.add(number)
        seen.add(label)
    return found


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


def recalls(scores: Array, lists: Lists, chosen: npt.NDArray[np.int64], needed: int) -> list[float]:
    hits = np.zeros(3)
    for part in (lists.parts[at] for at in chosen):
        right = lists.right[part][np.argsort(-scores[part], kind="stable")]
        hits += [right[:count].any() for count in (1, 5, 10)]
    return [round(float(hit) / max(1, needed), 3) for hit in hits]


def rank_loss(scores: Array, lists: Lists, chosen: npt.NDArray[np.int64]) -> float:
    """Mean negative logarithm of what the ranking gives the right ones, over the lists that hold one."""
    found = []
    for part in (lists.parts[at] for at in chosen):
        if lists.right[part].any():
            raised = np.exp(scores[part] - scores[part].max())
            found.append(-np.log(raised[lists.right[part]].sum() / raised.sum()))
    return float(np.mean(found))


def log_loss(score: Array, right: Array) -> float:
    return float((np.logaddexp(0, score) - score * right).mean())


def thresholds(probability: Array, right: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], needed: int, asked: float) -> dict[str, Any]:
    """The operating points, from the probabilities of reports that were held out.

    join: the greatest attach F1 at a false-merge rate of FALSE_MERGES_MAX at most. ask: from ``asked`` on; where that is more than may be
    asked about, the budget holds. suggest: nearly all of the known ones that the ranking has first. ``right`` says of each report whether
    its best candidate is the right one, ``known`` whether an earlier report has its label, ``needed`` how many of the streams' have.
    """
    new = int((~known).sum())
    order = np.argsort(-probability, kind="stable")
    count = np.arange(1, len(order) + 1)
    hits, wrong = np.cumsum(right[order]), np.cumsum(~known[order]) / new
    f1 = 2 * hits / (count + needed)
    allowed = np.flatnonzero(wrong <= FALSE_MERGES_MAX)
    join = int(allowed[np.argmax(f1[allowed])]) if len(allowed) else 0
    ask = max(join, int((probability >= asked).sum()) - 1)
    suggest = max(ask, int(np.searchsorted(hits, SUGGESTED_RECALL * hits[-1])))
    rules = {
        "join": f"greatest attach F1 at a false-merge rate of {FALSE_MERGES_MAX:.4f} at most",
        "ask": f"the likeliest {ASKED_SHARE} of the new reports of every stream",
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
    parser = argparse.ArgumentParser(
        prog="python -m bench.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="train on the first so many rows (default: the first half)")
    parser.add_argument("--gitbugs", type=Path, nargs="*", default=[], help="folders of projects in a checkout of GitBugs")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="where vectors are kept between runs")
    options = parser.parse_args()
    rows = load(options.file)
    rows = rows[: options.rows or len(rows) // 2]
    lists = Lists()
    origin = [{"data": options.file.name, "rows": f"the first {len(rows)}"}]
    lists.add(rows, options.model, options.cache)
    own, needed = lists.forwards, lists.needed  # the lists of the file itself, of which the figures are printed too
    for folder in options.gitbugs:
        more = gitbugs.load(folder)
        origin.append({"data": f"GitBugs, {folder.name}", "rows": f"all {len(more)}", "sha256": gitbugs.digest(folder)})
        lists.add(more, options.model, options.cache)
    forwards = lists.forwards
    features = np.vstack(lists.features)
    learned = np.concatenate([np.arange(lists.parts[at].start, lists.parts[at].stop) for at in forwards])
    mean, deviation = features[learned].mean(axis=0), features[learned].std(axis=0) + 1e-6
    scaled = np.clip((features - mean) / deviation, -CLIP, CLIP)
    print(f"{len(lists.parts)} lists, {len(features)} pairs, {int(lists.right.sum())} right, {len(FEATURES)} features")

    best: tuple[float, float, Array] | None = None
    for strength in RANK_STRENGTHS:
        held_out = np.zeros(len(scaled))
        for fold in range(FOLDS):
            weights = fit_rank(scaled, lists, lists.outside(fold), strength)
            for at in np.flatnonzero(lists.fold == fold):
                held_out[lists.parts[at]] = scaled[lists.parts[at]] @ weights
        loss = rank_loss(held_out, lists, forwards)
        found, file_alone = recalls(held_out, lists, forwards, lists.needed), recalls(held_out, lists, own, needed)
        print(f"  ranking, strength {strength:5.0f}: held-out loss {loss:.4f}, recall@1/5/10 {found}, of the file alone {file_alone}")
        if best is None or loss < best[0]:
            best = (loss, strength, held_out)
    assert best is not None
    rank_strength, held_out = best[1], best[2]
    rank = fit_rank(scaled, lists, list(range(len(lists.parts))), rank_strength)

    # The second model sees the ranking as it is on rows the ranking was not fitted to: else it would trust it too much.
    parts = [lists.parts[at] for at in forwards]
    orders = [np.argsort(-held_out[part], kind="stable") for part in parts]
    stands = np.array([standing(scaled[part], held_out[part], order) for part, order in zip(parts, orders, strict=True)])
    right = np.array([lists.right[part][order[0]] for part, order in zip(parts, orders, strict=True)], float)
    folds = lists.fold[forwards]
    standing_mean, standing_deviation = stands.mean(axis=0), stands.std(axis=0) + 1e-6
    stands = np.clip((stands - standing_mean) / standing_deviation, -CLIP, CLIP)
    best_right: tuple[float, float, Array] | None = None
    for strength in RIGHT_STRENGTHS:
        score = np.zeros(len(right))
        for fold in range(FOLDS):
            inside = folds != fold
            weights, bias = fit_right(stands[inside], right[inside], strength)
            score[~inside] = stands[~inside] @ weights + bias
        loss = log_loss(score, right)
        print(f"  probability, strength {strength:5.0f}: held-out log loss {loss:.4f} (always the mean: {_entropy(right.mean()):.4f})")
        if best_right is None or loss < best_right[0]:
            best_right = (loss, strength, 1 / (1 + np.exp(-score)))
    assert best_right is not None
    asked = min(float(np.quantile(best_right[2][lists.stream[forwards] == at], 1 - ASKED_SHARE)) for at in range(len(origin)))
    bars = thresholds(best_right[2], right.astype(bool), lists.known[forwards], lists.needed, asked)
    for name, bar in bars.items():
        print(f"  {name}: {bar}")
    weights, bias = fit_right(stands, right, best_right[1])
    data = {
        "origin": {
            "made_by": "python -m bench.training",
            "data": origin,
            "pairs": len(features),
            "right_pairs": int(lists.right.sum()),
            "rank_strength": rank_strength,
            "right_strength": best_right[1],
            "held_out_recall": recalls(held_out, lists, forwards, lists.needed),
            "held_out_recall_of_the_file": recalls(held_out, lists, own, needed),
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
