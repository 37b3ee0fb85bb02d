"""The names a signal speaks of: functions, routes, exception types, error codes, and the plain words around them.

Signals of different kinds about one problem rarely share sentences, but they share such names: the route of the exception is a path
segment of the health check and a word in the customer's ticket. Each anchor has a weight: 1 for names out of a structured field,
`PLAIN` for a word out of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from loopwright_common.contracts.signals import Signal

from loopwright_cluster.grouping.fingerprints import CHECK_LABELS, PLACE_LABELS, TARGET_LABELS, telling_labels
from loopwright_cluster.grouping.normalise import normalise_file, normalise_function
from loopwright_cluster.grouping.vocabulary import words

PLAIN = 0.5
PART = 0.7  # a word inside a compound name: `discount` of `apply_discount`
ANCHORS_MAX = 48
FRAMES_MAX = 5  # innermost in-app frames whose names count
TEXT_CHARS_MAX = 2_000
STEMS_REMEMBERED_MAX = 16_384

COMMON_NAMES = words("common_names")
COMMON_WORDS = words("common_words") | words("common_words_elsewhere")
COMMON_TYPES = words("common_types")

_WORD = re.compile(r"[^\W\d_](?:[^\W_]|['’]){1,63}")  # of any script: half a word is a name that nobody has said
_SEPARATES = re.compile(r"[\s,;:/]")
_NAME = re.compile(r"[^\W\d_][\w'’]{1,127}")
_SPLIT_NAME = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_PATH = re.compile(r"(?<![\w.])/[A-Za-z0-9_.~%{}:-]{1,64}(?:/[A-Za-z0-9_.~%{}:-]{1,64}){0,8}")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s/\"'<>]{1,255}((?:/[^\s\"'<>?#]{0,256})?)")
_IDENTIFIER = re.compile(r"\b(?:[A-Za-z]\w{0,63}_\w{1,64}|[a-z]{1,32}(?:[A-Z][a-z0-9]{1,32}){1,5}|(?:[A-Z][a-z0-9]{1,32}){2,6})\b")
_TYPE = re.compile(r"\b(?:[A-Z][A-Za-z0-9]{1,48})?(?:Error|Exception|Fault|Timeout|Refused)\b")
_CODE = re.compile(r"\b(?:[A-Z]{1,8}-?\d{3,8}|[A-Z][A-Z0-9]{0,24}_[A-Z0-9_]{2,48}|E[A-Z]{5,24})\b")
_QUOTED = re.compile(r"'([A-Za-z][\w.-]{1,40})'|\"([A-Za-z][\w.-]{1,40})\"|`([A-Za-z][\w.-]{1,40})`")
_ACRONYM = re.compile(r"\b[A-Z]{3,6}\b")


@lru_cache(STEMS_REMEMBERED_MAX)  # a project's words repeat, and each text's are looked at several times
def stem(word: str) -> str:
    """A light stem: plural and participle endings off, so that `payments` meets `payment`."""
    text = word.lower().replace("’", "").replace("'", "")
    for ending in ("ies",):
        if text.endswith(ending) and len(text) > 5:
            return text[:-3] + "y"
    for ending in ("sses", "shes", "ches", "xes", "zes"):
        if text.endswith(ending):
            return text[:-2]
    for ending in ("ing", "ed"):
        if text.endswith(ending) and len(text) - len(ending) >= 4:
            return text[: -len(ending)]
    return text[:-1] if len(text) > 3 and text.endswith("s") and not text.endswith(("ss", "us", "is")) else text


COMMON_WORD_STEMS = frozenset(stem(word) for word in COMMON_WORDS) | COMMON_WORDS


class _Anchors:
    """Collects anchors; the highest weight of a name wins."""

    def __init__(self, service: str) -> None:
        self.found: dict[str, float] = {}
        own = {service.lower(), *(part for part in re.split(r"[^a-z0-9]+", service.lower()) if part)}
        self._own = own | {stem(part) for part in own}

    def add(self, name: str, weight: float) -> None:
        token = stem(name)
        if len(token) < 3 or token in COMMON_NAMES or name.lower() in COMMON_NAMES or token in self._own or token.isdigit():
            return
        self.found[token] = max(weight, self.found.get(token, 0.0))

    def add_name(self, name: str, weight: float = 1.0) -> None:
        """A compound name and, a little lighter, the words it is made of."""
        bare = name.strip("_<>(){}$*.")
        self.add(bare, weight)
        parts = _SPLIT_NAME.findall(bare)
        for part in parts if len(parts) > 1 else ():
            if len(part) > 3 and stem(part) not in COMMON_WORD_STEMS:
                self.add(part, weight * PART)

    def add_path(self, path: str, weight: float = 1.0) -> None:
        own = []
        for segment in path.split("?")[0].split("/"):
            if segment and not any(character.isdigit() for character in segment) and "{" not in segment and "<" not in segment:
                name = segment.split(".")[0]
                self.add_name(name, weight)
                own.append(name.lower())
        # The service `checkout` is no name in its own words, but its route /checkout is one of several.
        own = [name for name in own if name not in COMMON_NAMES]
        if own and all(name in self._own for name in own):
            self.found["/" + "/".join(own)] = weight

    def add_type(self, name: str) -> None:
        short = re.split(r"[.:$/\\]+", name.strip())[-1]
        if short.lower() in {"error", "exception"}:
            return
        self.add(short, PLAIN if short.lower() in COMMON_TYPES else 1.0)

    def add_text(self, text: str) -> None:
        text = text[:TEXT_CHARS_MAX]
        for url in _URL.finditer(text):
            self.add_path(url.group(1))
        rest = _URL.sub(" ", text)
        for path in _PATH.findall(rest):
            self.add_path(path)
        for name in _TYPE.findall(rest):
            self.add_type(name)
        for pattern, weight in ((_CODE, 1.0), (_ACRONYM, PART)):
            for name in pattern.findall(rest):
                if stem(name) not in COMMON_WORD_STEMS:
                    self.add(name, weight)
        for name in _IDENTIFIER.findall(rest):
            if not _TYPE.fullmatch(name):
                self.add_name(name, PART + 0.1)
        for quoted in _QUOTED.findall(rest):
            self.add_name(next(part for part in quoted if part), PART + 0.1)
        for word in _WORD.findall(rest):
            if len(word) > 3 and stem(word) not in COMMON_WORD_STEMS and word.lower() not in COMMON_WORDS and not _TYPE.fullmatch(word):
                self.add(word, PLAIN)


def spoken(names: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The names for a person: as a word of the texts, `pricing` for `pric`, where one has them."""
    said: dict[str, str] = {}
    for text in texts:
        for word in _NAME.findall(text[:TEXT_CHARS_MAX]):
            for form in (word, *_SPLIT_NAME.findall(word)):
                said.setdefault(stem(form), form)
    return [said.get(name, name) for name in names]


def anchors_of(signal: Signal) -> dict[str, float]:
    """Return the signal's anchors with their weights, the weightiest `ANCHORS_MAX`; names of its own service are not among them."""
    anchors = _Anchors(signal.service)
    if signal.exception_type:
        anchors.add_type(signal.exception_type)
    frames = [frame for frame in signal.frames if frame.in_app] or list(signal.frames)
    for frame in frames[-FRAMES_MAX:]:
        anchors.add_name(re.split(r"[.:]+", normalise_function(frame.function))[-1])
        anchors.add_name(normalise_file(frame.file).rsplit("/", 1)[-1].rsplit(".", 1)[0], PART + 0.1)
    _add_places(anchors, signal)
    anchors.add_text(signal.title)
    anchors.add_text(signal.exception_value)
    anchors.add_text(signal.body)
    best = sorted(anchors.found.items(), key=lambda item: (-item[1], item[0]))[:ANCHORS_MAX]
    return dict(sorted(best))


def _add_places(anchors: _Anchors, signal: Signal) -> None:
    """Routes and endpoints: of the transaction, the request, and the labels of probes and alerts."""
    transaction = signal.transaction.split(" ")[-1]
    if "/" in transaction:
        anchors.add_path(transaction)
    elif transaction:
        anchors.add_name(transaction.rsplit(".", 1)[-1])
    if signal.request is not None:
        anchors.add_path(_path_of(signal.request.url))
    for label in (*CHECK_LABELS, *TARGET_LABELS, "handler", "job", "queue", "topic", "operation"):
        value = signal.labels.get(label, "")
        for part in _words(value) if "/" not in value else ():
            anchors.add_name(part, PART + 0.1)
        if value and not _SEPARATES.search(value):  # `order-confirmation` as a whole: the queue that a job is named after
            anchors.add_name(value, PART + 0.1)
        if "/" in value:
            anchors.add_path(_path_of(value))
    for target in telling_labels({label: signal.labels.get(label, "") for label in PLACE_LABELS}).values():
        anchors.add_path(_path_of(target))  # of a probe, whose `instance` is the address it asks for


def _words(value: str) -> Iterable[str]:
    return re.split(r"[\s,;:-]+", value)[:8]


def _path_of(url: str) -> str:
    found = _URL.match(url)
    if found:
        return found.group(1)
    host, _, path = url.partition("/")  # a health check's target has no scheme
    return path if "." in host or ":" in host else url
