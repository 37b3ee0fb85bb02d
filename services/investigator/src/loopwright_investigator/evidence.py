"""What may be said: a claim that cites no observation, or one that is not there, is dropped here and counted. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from loopwright_common.contracts.investigations import Claim, Hypothesis

CLAIMS_MAX = 100
HYPOTHESES_MAX = 50


def supported_claims(claims: Iterable[Claim], known: Collection[str]) -> tuple[tuple[Claim, ...], int]:
    """The claims whose every citation is there, each statement once, and how many were dropped."""
    kept: dict[str, Claim] = {}
    dropped = 0
    for claim in claims:
        if not _stands(claim.statement, claim.cites, known) or len(kept) >= CLAIMS_MAX:
            dropped += 1
            continue
        kept.setdefault(claim.statement.strip(), claim)
    return tuple(kept.values()), dropped


def supported_hypotheses(hypotheses: Iterable[Hypothesis], known: Collection[str]) -> tuple[tuple[Hypothesis, ...], int]:
    """The same for hypotheses: an explanation that was considered must say what it was weighed against."""
    kept: dict[str, Hypothesis] = {}
    dropped = 0
    for hypothesis in hypotheses:
        if not _stands(hypothesis.statement, hypothesis.cites, known) or not hypothesis.reason.strip() or len(kept) >= HYPOTHESES_MAX:
            dropped += 1
            continue
        kept.setdefault(hypothesis.statement.strip(), hypothesis)
    return tuple(kept.values()), dropped


def _stands(statement: str, cited: tuple[str, ...], known: Collection[str]) -> bool:
    return bool(statement.strip()) and bool(cited) and all(name in known for name in cited)
