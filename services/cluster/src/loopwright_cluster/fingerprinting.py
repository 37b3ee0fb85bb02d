"""Fingerprints as the flow asks for them: with the project's rules as they stand and the templates of its log lines.

    found = fingerprinting.of(signal)                  # known? done
    for other in fingerprinting.others(signal, found): # not known: under which other keys may it be?
        ...                                            # the first that is known says the report; nothing is compared by meaning
    await fingerprinting.save(project)                 # before the facts are told

What is new is recorded under `found.key` and under each other key with `record`, all pointing to the same report, so that a later signal
is found whichever way it comes.
"""

from __future__ import annotations

from loopwright_common.contracts.signals import Signal
from loopwright_common.projects import Projects

from loopwright_cluster.grouping.fingerprints import Alternative, Fingerprint, alternatives, fingerprint
from loopwright_cluster.grouping.rules import NO_RULES, Rules
from loopwright_cluster.template_records import TemplateRecords


class Fingerprinting:
    """One for a process; ``projects`` None: no project has rules."""

    def __init__(self, templates: TemplateRecords, projects: Projects | None = None) -> None:
        self._templates = templates
        self._projects = projects
        self._rules: dict[str, tuple[int, Rules]] = {}

    def rules(self, project: str) -> Rules:
        """The project's rules, compiled once for each revision of its configuration."""
        published = self._projects.get(project) if self._projects is not None else None
        if published is None:
            return NO_RULES
        revision, rules = self._rules.get(project, (0, NO_RULES))
        if revision != published.revision:
            grouping = published.config.grouping
            rules = Rules(grouping) if grouping.fingerprints or grouping.frames else NO_RULES
            self._rules[project] = (published.revision, rules)
        return rules

    def of(self, signal: Signal) -> Fingerprint:
        """The signal's fingerprint. Learns from log lines, so signals have to come in their order."""
        return fingerprint(signal, templates=self._templates.templates, rules=self.rules(signal.project))

    def others(self, signal: Signal, found: Fingerprint) -> tuple[Alternative, ...]:
        """The other keys to look under where ``found.key`` is not known, the surest first."""
        return alternatives(signal, found, rules=self.rules(signal.project))

    async def save(self, project: str) -> None:
        """Store what was learned; durable when it returns, and free when nothing was. Raises Conflict."""
        await self._templates.save(project)
