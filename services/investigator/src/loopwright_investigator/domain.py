"""What an investigation speaks of between its steps: the case, the evidence with its ids, located code, releases, suspects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.configuration import ProjectConfig, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import EVIDENCE_MAX, Observation
from loopwright_common.contracts.queries import RatesAnswer
from loopwright_common.contracts.reports import ReportReady
from loopwright_common.contracts.signals import Signal
from pydantic import Field

LINE_MAX = 512
SHORT_MAX = 2_048
TEXT_MAX = 16_384
DATA_BYTES_MAX = 32_768  # an observation's data: 200 of them stay below the bus's message limit together with the rest
EVIDENCE_BYTES_MAX = 600_000  # all observations of one investigation: the message that carries them must fit the server's 1 MiB


def line(text: str, limit: int = LINE_MAX) -> str:
    """``text`` as one printable line of at most ``limit`` characters; an ellipsis says that something was cut."""
    plain = " ".join("".join(character if character.isprintable() else " " for character in text[: limit * 4]).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def short(text: str) -> str:
    """``text`` cut to the contracts' ShortText, line breaks kept."""
    return text if len(text) <= SHORT_MAX else text[: SHORT_MAX - 1] + "…"


def plural(count: int, noun: str) -> str:
    """``3 commits``, ``1 commit``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def abbreviated(commit: str) -> str:
    """The first seven digits, as people say them."""
    return commit[:7]


class Evidence:
    """Gathers observations and gives each its id. Beyond the limits nothing is added, and ``left_out`` counts what was not."""

    def __init__(self, maximum: int = EVIDENCE_MAX, bytes_max: int = EVIDENCE_BYTES_MAX) -> None:
        self._observations: list[Observation] = []
        self._maximum = maximum
        self._bytes_left = bytes_max
        self.left_out = 0

    def observe(self, kind: str, question: str, answer: str, *, window: str = "", data: Mapping[str, Any] | None = None) -> str:
        """Records what was asked and answered; returns the observation's id, or an empty text when the limits are reached."""
        content = dict(data or {})
        if len(json.dumps(content, default=str)) > DATA_BYTES_MAX:
            content = {"left_out": f"over {DATA_BYTES_MAX} bytes"}
        text = answer if len(answer) <= TEXT_MAX else answer[: TEXT_MAX - 1] + "…"
        size = len(text.encode()) + len(json.dumps(content, default=str)) + len(question)
        if len(self._observations) >= self._maximum or size > self._bytes_left:
            self.left_out += 1
            return ""
        self._bytes_left -= size
        name = f"e{len(self._observations) + 1}"
        self._observations.append(
            Observation(id=name, kind=line(kind), question=short(question), window=line(window), answer=text, data=content)
        )
        return name

    @property
    def observations(self) -> tuple[Observation, ...]:
        return tuple(self._observations)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(observation.id for observation in self._observations)


def cites(*ids: str) -> tuple[str, ...]:
    """The ids that are there, each once."""
    return tuple(dict.fromkeys(name for name in ids if name))[:20]


@dataclass(frozen=True)
class Case:
    """What an investigation starts from. ``rates`` is None when the gateway did not answer; the reason is then in ``rates_missing``."""

    ready: ReportReady
    config: ProjectConfig | None
    rates: RatesAnswer | None
    now: datetime
    rates_missing: str = ""
    rates_start: datetime | None = None

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The example signals that describe the problem; verdicts of our own that came back do not."""
        return tuple(signal for signal in self.ready.report.examples if signal.kind.value != "measurement")


@dataclass(frozen=True)
class Place:
    """Where the code of the report lives. ``service`` may be unknown while the repository is the project's only one."""

    service: str
    service_config: ServiceConfig | None
    repository: RepositoryConfig | None
    reason: str

    @property
    def path(self) -> str:
        """The folder of the repository that holds the service; empty: the whole."""
        return self.service_config.path.strip("/") if self.service_config is not None else ""

    @property
    def deployed_path(self) -> str:
        return self.service_config.deployed_path if self.service_config is not None else ""


@dataclass(frozen=True)
class Location:
    """A place in the code that the signals point at. ``weight`` 0..1: how much it says about where the cause is.

    ``start`` and ``end`` are the lines of the enclosing function at ``commit`` where it was found. ``raising``: the innermost frame of
    the product's own code. ``how`` says why this file is meant, in words.
    """

    path: str
    line: int | None
    function: str
    commit: str
    weight: float
    how: str
    raising: bool = False
    text: str = ""
    start: int | None = None
    end: int | None = None
    from_frame: bool = True
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Located:
    """What the frames and mentions came to. ``unmapped`` are frames that no file answers to, with the reason."""

    locations: tuple[Location, ...] = ()
    unmapped: tuple[str, ...] = ()
    frames_seen: int = 0
    minified: bool = False
    third_party_only: bool = False
    cites: tuple[str, ...] = ()

    @property
    def raising(self) -> Location | None:
        """The location closest to the failure, if a frame led to one."""
        return next((location for location in self.locations if location.raising and location.from_frame), None)


@dataclass(frozen=True)
class ReleaseFacts:
    """One release of the service, in the order they went live. ``commit`` is None when its name resolves to nothing."""

    name: str
    commit: str | None
    live_from: datetime | None
    live_until: datetime | None
    signals: int
    exposure: float
    deploy_id: str = ""


@dataclass(frozen=True)
class Onset:
    """When it began, with which release, and what was good before it.

    ``tie`` is how sure the deploy is the beginning: ``new`` (never in the release before, which was used enough to tell), ``likely``
    (never before, but the release before was used too little to tell), ``rose`` (seen before, clearly more often since), ``unclear``.
    ``chance`` is the probability of seeing so little in the release before, had it failed as often.
    """

    first_seen: datetime
    bad: ReleaseFacts | None = None
    good: ReleaseFacts | None = None
    newest_seen: ReleaseFacts | None = None
    releases: tuple[ReleaseFacts, ...] = ()
    tie: str = "unclear"
    chance: float | None = None
    gone_since: ReleaseFacts | None = None  # a later release, used enough, in which it is not seen any more
    gone_chance: float | None = None
    reason: str = ""
    cites: tuple[str, ...] = ()
    commit_from_person: str = ""  # the running commit, where a person had to say it


@dataclass(frozen=True)
class Candidate:
    """A scored commit. ``tier`` is the closest it comes: line, near, function, file, path, none."""

    commit: str
    title: str
    author: str
    author_mail: str
    committed_at: datetime
    score: float
    tier: str
    reasons: tuple[str, ...]
    files: tuple[str, ...]
    in_window: bool
    is_merge: bool = False
    cites: tuple[str, ...] = ()
    named_by_person: bool = False

    def discarded_by_window(self, suspects: Suspects) -> bool:
        """Whether it was live before the problem began, as far as the releases tell."""
        return suspects.window_known and not self.in_window


@dataclass(frozen=True)
class Suspects:
    """Candidates, best first, and how many commits were looked at. ``unexplained`` is the share left to causes outside the history."""

    candidates: tuple[Candidate, ...] = ()
    considered: int = 0
    window_known: bool = False
    window: str = ""
    truncated: bool = False
    unexplained: float = 1.0
    discarded: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # statement, reason, cites
    cites: tuple[str, ...] = ()

    @property
    def first(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None


@dataclass(frozen=True)
class RevertCheck:
    """Whether git can take a commit back on top of ``onto``. ``dangling`` names what later code still uses of it: (name, file)."""

    commit: str
    onto: str
    clean: bool
    empty: bool = False
    conflicts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    changed_lines: int = 0
    dangling: tuple[tuple[str, str], ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Addressed:
    """Whether main already has an answer. ``strength`` 0..1."""

    by: str = ""  # the commit
    how: str = ""  # reverted, lines changed, named
    strength: float = 0.0
    reason: str = ""
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlastRadius:
    """Who is hit. ``share`` is signals per unit of exposure since the onset; None when the use of the service is not known."""

    signals: int
    people: int
    share: float | None = None
    exposure: float = 0.0
    exposure_unit: str = ""
    environments: tuple[str, ...] = ()
    trend: str = "unknown"  # rising, falling, steady, unknown
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The verdict with its words."""

    verdict: str
    reason: str
    confidence: float
    question: str = ""
    revert: RevertCheck | None = None
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """One exchange with a model, kept for the replay bundle."""

    prompt: str
    answer: str
    outcome: str
    model: str = ""


class Bundle(Contract):
    """All that an investigation saw: enough to run it again and to argue with it."""

    version: int = 1
    investigation_id: str
    ready: ReportReady
    config: ProjectConfig | None = None
    rates: RatesAnswer | None = None
    rates_missing: str = ""
    rates_start: datetime | None = None
    now: datetime
    repository: str = ""
    main: str = ""  # the default branch's commit at the time
    unreadable: str = ""  # why the repository could not be read, when it could not
    investigation: dict[str, Any] = Field(default_factory=dict)
    transcript: tuple[dict[str, str], ...] = ()
