"""A signal as the matchers see it: the text to embed, its anchors and its frames."""

from __future__ import annotations

import re

from loopwright_common.contracts.signals import Signal

from loopwright_cluster.domain import FRAMES_KEPT, Exemplar
from loopwright_cluster.embedding import TITLE_ENDS
from loopwright_cluster.grouping.anchors import anchors_of
from loopwright_cluster.grouping.apart import LABELLED
from loopwright_cluster.grouping.fingerprints import Fingerprint, in_app_frames, stack_of, telling_labels
from loopwright_cluster.grouping.normalise import parameterise
from loopwright_cluster.grouping.wording import TEXT_CHARS_MAX as WORDING_CHARS_MAX

BODY_CHARS_MAX = 800  # with the title about 256 tokens, which is what the embedding reads
TEXT_CHARS_MAX = 1_200
PEOPLE = frozenset({"ticket", "issue", "observation", "replay"})  # `v1.HUMAN_KINDS`, which comes after this

SUBJECTS_MAX = 24  # labels of one alert
SUBJECT_CHARS_MAX = 120
NAMES_OF_ALERTS = frozenset({"alertname", "alert", "rule", "monitor_name"})  # two rules may watch one thing, and say nearly the same

_NAME_PARTS = re.compile(r"[^\W_]+")
_MEANINGLESS = re.compile(r"0[xX][0-9a-fA-F]{1,64}|\d{4,64}")  # addresses, ids, line numbers


def embedding_text(signal: Signal) -> str:
    """What is embedded: sentences for a model of sentences, with variable parts out (numbers alone moved a cosine by .2)."""
    if signal.kind.value in PEOPLE:
        return _by_a_person(signal)
    sentences = [signal.title]
    if signal.exception_type and signal.exception_type not in signal.title:
        sentences.append(f"{signal.exception_type}: {signal.exception_value}")
    frames = in_app_frames(signal)
    if frames:
        file, _, function = frames[-1].rpartition(":")
        sentences.append(f"in {function} ({file})")
    if signal.transaction:
        sentences.append(f"while serving {signal.transaction}")
    if signal.body and signal.body != signal.title:
        sentences.append(signal.body[:BODY_CHARS_MAX])
    return ". ".join(parameterise(sentence) for sentence in sentences if sentence)[:TEXT_CHARS_MAX]


def _by_a_person(signal: Signal) -> str:
    """Title and beginning as they were written: names, quotations and small numbers tell two problems of one part from each other.

    On the training rows the right report is among the nearest ten in .62 of the cases; with all variable parts out, and the title as one
    sentence among many, in .47.
    """
    title, body = as_written(signal.title), as_written(signal.body[:BODY_CHARS_MAX])
    return f"{title}.{TITLE_ENDS}\n{body}" if body.strip() and signal.body != signal.title else title


def as_written(text: str) -> str:
    """A person's text as it is embedded: all but what means nothing to anybody."""
    return _MEANINGLESS.sub("", text.replace(TITLE_ENDS, " "))


def subjects_of(signal: Signal) -> dict[str, str]:
    """What an alert or a health check is about: by label the words of its value, where it has any.

    Parts that hold a digit are out: figures (`0.99`, `5xx`, `1h`) are how it was measured, and generated ones (`backup-28391234`) are new
    every time. Labels that say where or how badly are out, as they are of the fingerprint.
    """
    if signal.kind.value not in LABELLED:
        return {}
    found: dict[str, str] = {}
    for name, value in sorted(telling_labels(signal.labels).items()):
        if name.lower() in NAMES_OF_ALERTS or len(found) == SUBJECTS_MAX:
            continue
        parts = _NAME_PARTS.findall(value[: 2 * SUBJECT_CHARS_MAX].lower())
        said = " ".join(part for part in parts if not any(character.isdigit() for character in part))
        if said:
            found[name[:SUBJECT_CHARS_MAX]] = said[:SUBJECT_CHARS_MAX]
    return found


def describe(signal: Signal, found: Fingerprint) -> Exemplar:
    """The signal as an exemplar of its fingerprint, in no report yet (``report_id`` is empty)."""
    return Exemplar(
        project=signal.project,
        fingerprint=found.key,
        report_id="",
        signal_id=signal.id,
        kind=signal.kind.value,
        service=signal.service,
        occurred_at=signal.occurred_at.timestamp(),
        title=signal.title,
        text=embedding_text(signal),
        release=signal.release,
        environment=signal.environment,
        exception_type=stack_of(signal).root or signal.exception_type,  # as the fingerprint has it: of the root cause
        explicit=found.explicit,
        anchors=anchors_of(signal),
        frames=in_app_frames(signal)[-FRAMES_KEPT:],
        body=signal.body[:WORDING_CHARS_MAX],
        subjects=subjects_of(signal),
    )
