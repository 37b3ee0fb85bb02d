"""The pull request's text. Everything in it may come from outside, so nothing of it can mention, embed, link out or close anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loopwright_common.contracts.changes import ChangeRequested, ProofLevel, SandboxRun
from loopwright_common.contracts.investigations import Cost, MetricContract

from loopwright_pr_agent.domain import Proposal, Verified, shorten

BODY_CHARACTERS_MAX = 60_000  # GitHub takes 65,536
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>])")
_PROOF = {
    ProofLevel.REPRODUCED: "Reproduced: failed before, passes after",
    ProofLevel.TESTS_ONLY: "Tests only",
    ProofLevel.NOT_VERIFIED: "Not verified",
}


def plain(text: str, limit: int = 500) -> str:
    """Outside text as one line of markdown that shows as it was written and does nothing.

    Markup is escaped, HTML is escaped, ``@`` and ``#`` are followed by a zero-width space so that nobody is mentioned and no issue is
    referred to, and ``://`` is broken so that nothing becomes a link.
    """
    line = " ".join(shorten(text, limit).split())
    line = "".join(character for character in line if character.isprintable())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    line = _MARKUP.sub(r"\\\1", line)
    return line.replace("@", "@\u200b").replace("#", "#\u200b").replace("://", ":\u200b//").replace("www\\.", "www\u200b\\.")


def block(text: str, limit: int = 3_000) -> str:
    """Outside text of several lines as a code block whose fence it cannot end."""
    shown = "".join(character for character in text[-limit:] if character.isprintable() or character in "\n\t")
    longest = max((len(ticks) for ticks in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown.strip()}\n{fence}"


def compose(request: ChangeRequested, proposal: Proposal, verified: Verified, cost: Cost) -> str:
    """The whole body."""
    report, investigation = request.report, request.investigation
    kinds = ", ".join(f"{count} {plain(kind, 40)}" for kind, count in sorted(report.kinds.items())[:8])
    parts = [
        "## Problem",
        f"{plain(report.title)}: {report.signal_count} signals ({kinds}), {report.people_count} people affected, since "
        f"{report.first_seen:%Y-%m-%d %H:%M} UTC. Report `{report.id}`.",
        plain(investigation.summary, 1_500),
        "## Evidence",
        *_evidence(request),
        "## Why this change",
        plain(proposal.why, 1_500),
        "## Proof",
        f"**{_PROOF[verified.proof]}.** {plain(verified.reason, 1_500)}",
        f"Isolation: {plain(verified.isolation)} ({plain('; '.join(verified.facts), 1_000)}).",
        transcript(verified.runs),
        "## How it will be judged",
        _metric(investigation.metric),
        "## Reviewers",
        "\n".join(f"- {plain(item.name, 100)}: {plain(item.reason, 300)}" for item in investigation.reviewers)
        or "Nobody is known to own this.",
        "## Cost",
        f"{cost.wall_seconds:.1f} s, {cost.cpu_seconds:.1f} s of processor time, {cost.model_calls} model calls, {cost.usd:.4f} USD; "
        f"the investigation took {investigation.cost.wall_seconds:.1f} s and {investigation.cost.usd:.4f} USD.",
        f"\n---\nProposed by Loopwright (change `{request.change_id}`). Nothing is merged without a person.",
    ]
    return shorten("\n\n".join(part for part in parts if part), BODY_CHARACTERS_MAX)


def _evidence(request: ChangeRequested) -> list[str]:
    investigation = request.investigation
    claims = [f"- {plain(claim.statement)} ({', '.join(f'`{cite}`' for cite in claim.cites)})" for claim in investigation.claims[:12]]
    cited = {cite for claim in investigation.claims[:12] for cite in claim.cites}
    seen = [f"- `{item.id}` {plain(item.kind, 60)}: {plain(item.question, 300)}" for item in investigation.evidence if item.id in cited]
    return ["\n".join(claims) or "- No claim was kept.", "\n".join(seen[:20])]


def transcript(runs: Sequence[SandboxRun]) -> str:
    """The runs as a table."""
    if not runs:
        return "Nothing was run."
    rows = ["| step | command | result | seconds |", "|---|---|---|---|"]
    for run in runs[:30]:
        result = f"exit {run.exit_code}" if run.outcome == "exited" else run.outcome.replace("_", " ")
        rows.append(f"| {plain(run.step, 60)} | {plain(run.command, 120)} | {result} | {run.wall_seconds:.1f} |")
    return "\n".join(rows)


def _metric(metric: MetricContract | None) -> str:
    if metric is None:
        return "No metric was fixed; nothing will be measured."
    direction = "fall" if metric.direction == "decrease" else "rise"
    guards = ", ".join(f"{plain(item.metric, 80)} (at most {item.worsening_max:.0%} worse)" for item in metric.guardrails) or "none"
    return (
        f"Fixed before this pull request: `{metric.metric if metric.metric.isidentifier() else 'metric'}` must {direction} by at least "
        f"{metric.minimum_effect:.0%} ({plain(metric.query)}), shown by the {metric.confidence:.0%} interval of the "
        f"{plain(metric.test, 200)}. Baseline: {metric.baseline_count} in {metric.baseline_exposure:g} "
        f"{metric.exposure_unit}, {metric.baseline_start:%Y-%m-%d %H:%M} to {metric.baseline_end:%Y-%m-%d %H:%M} UTC. Guardrails: {guards}."
    )
