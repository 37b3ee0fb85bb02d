"""Fingerprints as the flow asks for them: with the project's rules, the templates of its log lines, and the other keys of what is known.

    found = fingerprinting.of(signal)                           # known? done
    elsewhere = await fingerprinting.elsewhere(signal, found)   # not known: which known fingerprint is the same problem under another key?
    fingerprinting.note(signal, found)                          # it is new, or joined: later ones may come by its other keys
    await fingerprinting.save(project)                          # with the fingerprints' records, before the facts are told

``note`` counts at once, for the signals that follow in the same batch, and is durable with ``save``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopwright_common.bus import Bus
from loopwright_common.contracts.signals import Signal
from loopwright_common.projects import Projects

from loopwright_cluster.alias_records import AliasRecords
from loopwright_cluster.grouping.fingerprints import Alternative, Fingerprint, alternatives, fingerprint
from loopwright_cluster.grouping.rules import NO_RULES, Rules
from loopwright_cluster.template_records import TemplateRecords

ALTERNATIVES_REMEMBERED_MAX = 1_000  # as many as a batch has at most
REACHED = "an earlier signal of the same problem, which a layer had wrapped or whose client did not tell its own frames, led to this key"


@dataclass(frozen=True)
class Elsewhere:
    """A fingerprint that may be known already, and why it is the same problem: a sentence for a person."""

    fingerprint: str
    reason: str


class Fingerprinting:
    """One for a process; ``projects`` None: no project has rules. ``start`` loads what was learned, ``stop`` ends following it."""

    def __init__(self, templates: TemplateRecords, aliases: AliasRecords, projects: Projects | None = None) -> None:
        self._templates = templates
        self._aliases = aliases
        self._projects = projects
        self._rules: dict[str, tuple[int, Rules]] = {}
        self._noted: dict[str, dict[str, str]] = {}  # project -> other key -> fingerprint, until they are saved
        self._others: dict[tuple[str, str, str], tuple[Alternative, ...]] = {}  # of the batch in hand: each is asked for three times

    @classmethod
    async def open(cls, bus: Bus, projects: Projects | None = None) -> Fingerprinting:
        """On this bus's buckets."""
        return cls(await TemplateRecords.open(bus), await AliasRecords.open(bus), projects)

    async def start(self) -> None:
        """Load the templates and follow them. Raises TimeoutError."""
        await self._templates.start()

    async def stop(self) -> None:
        await self._templates.stop()

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
            self._others.clear()
        return rules

    def of(self, signal: Signal) -> Fingerprint:
        """The signal's fingerprint. Learns from log lines, so signals have to come in their order."""
        return fingerprint(signal, templates=self._templates.templates, rules=self.rules(signal.project))

    def _alternatives(self, signal: Signal, found: Fingerprint) -> tuple[Alternative, ...]:
        key = (signal.project, signal.id, found.key)
        others = self._others.get(key)
        if others is None:
            if len(self._others) >= ALTERNATIVES_REMEMBERED_MAX:
                self._others.clear()
            others = self._others[key] = alternatives(signal, found, rules=self.rules(signal.project))
        return others

    async def stored_aliases(self, new: Sequence[tuple[Signal, Fingerprint]]) -> dict[tuple[str, str], str]:
        """What ``elsewhere`` asks the store for, for many signals at once: (project, other key) -> the fingerprint it leads to.

        Asked-for keys that lead nowhere are there with an empty fingerprint.
        """
        keys: dict[str, dict[str, None]] = {}
        for signal, found in new:
            asked = keys.setdefault(signal.project, {})
            asked[found.key] = None
            asked.update(dict.fromkeys(other.key for other in self._alternatives(signal, found)))
        found_for: dict[tuple[str, str], str] = {}
        for project, asked in keys.items():
            stored = await self._aliases.first(project, list(asked))
            found_for |= {(project, key): stored.get(key, "") for key in asked}
        return found_for

    async def elsewhere(self, signal: Signal, found: Fingerprint, asked: Mapping[tuple[str, str], str] | None = None) -> list[Elsewhere]:
        """The fingerprints under which the same problem may be known, the surest first: for a fingerprint that is not known itself.

        Whether one of them is, the caller looks up: an earlier version's key, say, is one only where that version saw the problem.
        ``asked``: what ``stored_aliases`` has answered for it a moment ago.
        """
        others = self._alternatives(signal, found)
        noted = self._noted.get(signal.project, {})
        keys = [found.key, *(other.key for other in others)]
        if asked is not None and all((signal.project, key) in asked for key in keys):
            stored: Mapping[str, str] = {key: asked[signal.project, key] for key in keys if asked[signal.project, key]}
        else:
            stored = await self._aliases.first(signal.project, keys)
        result: dict[str, Elsewhere] = {}
        reasons = ((found.key, REACHED, False), *((other.key, other.reason, other.itself) for other in others))
        for key, reason, itself in reasons:
            for fingerprint_key in (key,) if itself else (noted.get(key), stored.get(key), key):
                if fingerprint_key is not None and fingerprint_key != found.key:
                    result.setdefault(fingerprint_key, Elsewhere(fingerprint_key, reason))
        return list(result.values())

    def note(self, signal: Signal, found: Fingerprint) -> None:
        """Let the signal's other keys lead to its fingerprint, from now on."""
        noted = self._noted.setdefault(signal.project, {})
        for other in self._alternatives(signal, found):
            if other.record:
                noted.setdefault(other.key, found.key)

    async def save(self, project: str) -> Mapping[str, str]:
        """Store what was learned and noted; durable when it returns, and free when there is nothing. Returns what was noted.

        What ``stored_aliases`` has answered before does not know of it. Raises Conflict.
        """
        await self._templates.save(project)
        aliases = dict(self._noted.get(project, {}))
        if aliases:
            await self._aliases.add(project, aliases)
            for key in aliases:
                self._noted[project].pop(key, None)
        return aliases
