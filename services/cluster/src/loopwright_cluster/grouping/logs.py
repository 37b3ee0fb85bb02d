"""What a log line says, without its values: first what can be told from the line alone, then what is learned from the lines before it.

`shape` takes out of a line what has the form of a value. What has no such form (a user's name, a table's) shows only when a second line
differs there: `Templates` finds the earlier line that says the same, and remembers where the two differ. The idea of a tree by length and
first word, and of a similarity bar, is Drain's (He et al., ICWS 2017); which differences count as two values and which as two statements
is decided here, by the words themselves.

A line's fingerprint is that of the first line of its template, so a template that grows later changes no fingerprint. A template only ever
loses literals, so two copies of it can always be joined (`merge`), and what is stored may lag behind without harm.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from loopwright_cluster.grouping.normalise import CHARS_MAX, parameterise
from loopwright_cluster.grouping.vocabulary import words

ANY = "<*>"
TOKENS_MAX = 96  # of a line; what comes after says where and what with, hardly ever what happened
PLACE_TEMPLATES_MAX = 4_096  # per service: more than a program has log statements; beyond it those longest unused give way
PROJECT_TEMPLATES_MAX = 32_768  # about 16 MB; senders choose the names of services, so their number is no bound
EVICTED_SHARE = 16  # a sixteenth goes at once, so that a flood of nonsense does not sort the whole for every line
COMPARED_MAX = 256  # templates of one length and first word that a new line is compared with, oldest first: bounds the work of a flood
SHAPES_REMEMBERED_MAX = 8_192  # lines met again and again are answered from memory
SHAPES_PER_TEMPLATE = 16
WORDS_REMEMBERED_MAX = 32_768
LITERALS_SHARE_MIN = 0.6  # of the words of both that must agree. Drain's .5 counts wildcards too; anything from .51 to .65 did alike here

LOG_WORDS = words("log_words")
NAMED_NEXT = words("named_next")

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
# Dots that lead the eye to a value; dashes inside a word are the word's (`r1---sn-abc.example.com`).
_LEADER = re.compile(r"\.{3,64}|(?<!\w)-{3,64}|-{3,64}(?!\w)|={3,64}|_{3,64}|\*{3,64}")
_REQUEST = re.compile(r"\"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|CONNECT|TRACE) [^\"\n]{0,1024}\"")  # an access log quotes method and path
_STRUCTURED = re.compile(r"(?:^|[\s,{])\"?(?:msg|message|event)\"?\s?[=:]\s?\"((?:[^\"\\\n]|\\.){1,1024})\"", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"\n]{1,256}\"|(?<!\w)'[^'\n]{1,256}'(?!\w)|`[^`\n]{1,256}`")
_CALENDAR = re.compile(
    r"(?:\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? )?"
    rf"\b(?:{_MONTH}[a-z]{{0,6}} {{1,2}}\d{{1,2}}\b,?|\d{{1,2}} {_MONTH}[a-z]{{0,6}}\b)"
    r"(?:,? \d{4}\b)?(?: \d{1,2}:\d{2}(?::\d{2})?(?: [A-Z]{3,4}(?= \d{4}))?(?: \d{4}\b)?)?"
)
UNITS = words("units")

_MARK = re.compile(r"<[a-z]{2,8}>")
_HOST = re.compile(  # `state.clipAmount:180` is a field and its value: no domain ends in camel case
    r"(?:[A-Za-z0-9_-]{1,63}\.){1,8}(?![a-z]{1,24}[A-Z])[A-Za-z]{2,24}:\d{1,5}\b|(?<![\w./])(?:[a-z0-9-]{1,63}\.){1,8}(?:com|net|org|edu|gov|ac|co)\.[a-z]{2}\b(?![.\w(])"
)
_NUMBERED = re.compile(r"[\w.$#%+~@/\\*-]*\d[\w.$#%+~@/\\*-]*")
_PATH = re.compile(r"(?<![\w<])(?:/|~/|\.{1,2}/|[A-Za-z]:[\\/])[\w.$%+~@*-][^\s\"'<>()\[\]{},;:]*")
_ASSIGNED = re.compile(r"(?<=\w=)[^\s<>(){}\[\],;=]+(?:[({\[][^\s(){}\[\]]*[)}\]])?")
_GLUED = re.compile(r"(?:[\w.$#%+~@/\\-]*[_.$#%+~@/\\-])?<\*>(?:[_.$#%+~@/\\-]?\w[\w.$#%+~@/\\-]*)?")
_JOINED = re.compile(r"<\*>(?:[-_.:/,;#@+|]{0,2}<\*>)+")
_IN_BRACKETS = re.compile(r"\(<\*>\)[,;.:)\]}]{0,4}")
_HUMPS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_HAS_DIGIT = re.compile(r"\d")
_CLOSING = ",;.:)]}"
_EDGES = " \t.,;:!?()[]{}<>\"'`|*-=#"


@lru_cache(SHAPES_REMEMBERED_MAX)
def shape(line: str) -> tuple[str, ...]:
    """The line's words, with `<*>` for each part that has the form of a value; lists of values count as one. Never empty.

    Of a structured line (JSON, logfmt) the message counts: its fields are values. First goes what may hold spaces (quotations, dates
    in words), then each word by itself: most words are met again, and are answered from memory.
    """
    text = line[:CHARS_MAX]
    if '"' in text:
        message = _STRUCTURED.search(text)
        text = _QUOTED.sub(ANY, _REQUEST.sub(rf"\1 {ANY}", message.group(1) if message else text))
    elif "'" in text or "`" in text:
        text = _QUOTED.sub(ANY, text)
    kept: list[str] = []
    last, measured = "", -1  # the last word; the place of the last number that had its unit as a word of its own
    for token in _CALENDAR.sub(ANY, _LEADER.sub(r" \g<0> ", text)).split():
        unit = last.endswith(ANY) and token.rstrip(_CLOSING) in UNITS  # `3 min`, `20 ms,`: one value
        if unit:
            kept.pop()
            token = last + token[len(token.rstrip(_CLOSING)) :]
        elif not token.isalpha():
            token = _without_values(token)
            if ANY in token and token.rstrip(",;") == last.rstrip(",;"):
                last = token
                continue
        if kept and measured == len(kept) - 1 and _IN_BRACKETS.fullmatch(token):  # `1190 bytes (1.16 KB)`: a size, said twice
            last = kept[-1] = kept[-1] + token[len(f"({ANY})") :]
            continue
        kept.append(token)
        last = token
        if unit:
            measured = len(kept) - 1
        if len(kept) == TOKENS_MAX:
            break
    return tuple(kept) or ("",)


@lru_cache(WORDS_REMEMBERED_MAX)
def _without_values(token: str) -> str:
    """The token with `<*>` for what has the form of a value in it. Always in this order: a URL is never read as a path and a number."""
    if "." in token or "@" in token or "://" in token or "::" in token:
        token = _MARK.sub(ANY, parameterise(_HOST.sub("<host>", token)))
    if _HAS_DIGIT.search(token):
        token = _NUMBERED.sub(ANY, token)
    if "/" in token or "\\" in token:
        token = _PATH.sub(ANY, token)
    if "=" in token:
        token = _ASSIGNED.sub(ANY, token)
    return _JOINED.sub(ANY, _GLUED.sub(ANY, token)) if ANY in token else token


@lru_cache(SHAPES_REMEMBERED_MAX)
def is_statement(token: str) -> bool:
    """Whether a program's author rather than its data wrote the token: a word of the trade in any inflection, or a constant in capitals."""
    core = token.strip(_EDGES)
    if len(core) < 2:
        return False
    if core.isupper() and core.replace("_", "").replace("-", "").isalpha():
        return True
    if not core.isalpha():
        parts = [part for part in re.split(r"[^A-Za-z]+", core) if part]
        return bool(parts) and "." not in core and all(_is_word(part) for part in parts)
    return _is_word(core)


def _is_word(word: str) -> bool:
    """Whether it is a word of the trade, or made of them as programs make names: `OrderCreated`, `timeoutError`."""
    if any(form in LOG_WORDS for form in _base_forms(word.lower())):
        return True
    parts = _HUMPS.findall(word) if not (word.islower() or word.isupper()) else ()
    return len(parts) > 1 and all(any(form in LOG_WORDS for form in _base_forms(part.lower())) for part in parts)


def _base_forms(word: str) -> Iterator[str]:
    yield word
    for ending in ("s", "es", "ed", "d", "ing", "ly", "er", "or", "al", "ally"):
        if word.endswith(ending) and len(word) - len(ending) >= 2:
            base = word[: -len(ending)]
            if ending == "d" and not base.endswith("e"):
                continue  # `sshd` is no `ssh` of the past
            yield base
            if ending in ("ed", "ing", "er", "or"):
                yield base + "e"
                if len(base) > 2 and base[-1] == base[-2]:
                    yield base[:-1]
    for ending in ("ies", "ied"):
        if word.endswith(ending):
            yield word[: -len(ending)] + "y"


def differs_in_statement(one: str, other: str, before: str) -> bool:
    """Whether two tokens at one place, after the token `before`, say two things rather than name two."""
    if before.endswith("=") or before.strip(_EDGES).lower() in NAMED_NEXT:
        return False
    if ANY in one or ANY in other:
        left, right = one.replace(ANY, "").strip(_EDGES), other.replace(ANY, "").strip(_EDGES)
        return left != right and is_statement(left) and is_statement(right)
    if one.strip(_EDGES).lower() == other.strip(_EDGES).lower():
        return False
    one, other = _without_common_path(one, other)
    return is_statement(one) and is_statement(other)


def _without_common_path(one: str, other: str) -> tuple[str, str]:
    """`action.SCREEN_ON`, `action.SCREEN_OFF` -> `SCREEN_ON`, `SCREEN_OFF`: of two dotted names in one package, the last parts."""
    left, dot, last = one.rpartition(".")
    if dot and last and other.startswith(f"{left}."):
        return last, other[len(left) + 1 :]
    return one, other


@dataclass
class Template:
    """``tokens`` has `<*>` where values were seen to differ; ``id`` is that of its first line, and stays.

    ``number`` is its place in the order of founding; ``used_on`` the day of its newest line, in days since 1970.
    """

    id: str
    number: int
    tokens: tuple[str, ...]
    used_on: int = 0

    def fits(self, tokens: tuple[str, ...]) -> bool:
        """Whether a line of as many words says this."""
        return all(mine in (other, ANY) for mine, other in zip(self.tokens, tokens, strict=True))

    @property
    def text(self) -> str:
        return " ".join(self.tokens)


def template_id(tokens: Iterable[str]) -> str:
    """The id of the template that a line of this shape founds."""
    return hashlib.sha256("\x1f".join(tokens).encode("utf-8", "replace")).hexdigest()[:32]


def common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """What two lines of as many words share, `<*>` elsewhere. Commutative, associative, idempotent: any order of joining ends alike."""
    return tuple(mine if mine == its else ANY for mine, its in zip(one, other, strict=True))


class _Place:
    """The templates of one service and kind, by length and first word, the oldest first."""

    def __init__(self) -> None:
        self.templates: dict[str, Template] = {}
        self.buckets: dict[tuple[int, str], list[Template]] = {}
        self.remembered: dict[tuple[str, ...], Template] = {}
        self.next_number = 1

    def find(self, tokens: tuple[str, ...]) -> tuple[Template, bool]:
        """The template that says what the line says, and whether it was founded or grew by it."""
        known = self.remembered.get(tokens)
        if known is not None:
            return known, False
        bucket = self.buckets.get((len(tokens), tokens[0]), ())
        found = next((template for template in bucket if template.fits(tokens)), None)
        changed = found is None
        if found is None:
            found = _nearest(bucket[:COMPARED_MAX], tokens)
            if found is None:
                found = self.add(Template(template_id(tokens), self.next_number, tokens))
            else:
                found.tokens = common(found.tokens, tokens)
        if len(self.remembered) >= min(SHAPES_REMEMBERED_MAX, SHAPES_PER_TEMPLATE * len(self.templates) + 16):
            self.remembered.clear()  # of many services with few lines each, too, not more is remembered than they have to say
        self.remembered[tokens] = found
        return found, changed

    def add(self, template: Template) -> Template:
        """Take a template in, or join it with what is known under its id."""
        known = self.templates.get(template.id)
        if known is not None and len(known.tokens) == len(template.tokens):
            known.tokens = common(known.tokens, template.tokens)
            known.used_on = max(known.used_on, template.used_on)
            known.number = min(known.number, template.number)
        else:
            known = self.templates[template.id] = template
            self.buckets.setdefault((len(template.tokens), template.tokens[0]), []).append(template)
        self.next_number = max(self.next_number, template.number + 1)
        return known

    def settle(self) -> None:
        """After templates came from elsewhere: the order of founding again, nothing remembered."""
        self.remembered.clear()
        for bucket in self.buckets.values():
            bucket.sort(key=lambda template: (template.number, template.id))

    def remove(self, id: str) -> int:
        """Forget a template; returns how many that were."""
        template = self.templates.pop(id, None)
        if template is None:
            return 0
        key = (len(template.tokens), template.tokens[0])
        self.buckets[key].remove(template)
        if not self.buckets[key]:
            del self.buckets[key]
        self.remembered.clear()
        return 1


def _oldest(templates: Iterable[Template]) -> list[Template]:
    return sorted(templates, key=lambda template: (template.used_on, template.number, template.id))


def _nearest(bucket: Iterable[Template], tokens: tuple[str, ...]) -> Template | None:
    """The template that says the same with other values: no word of the trade differs, and enough words agree. The oldest of equals."""
    best, best_score = None, (0, 0)
    for template in bucket:
        same = named = 0
        before = ""
        for mine, its in zip(template.tokens, tokens, strict=True):
            if mine == its:
                same += ANY not in mine
            elif mine != ANY:
                if differs_in_statement(mine, its, before):
                    break
                named += 1
            before = its
        else:
            if same and same >= LITERALS_SHARE_MIN * (same + named) and (same, -named) > best_score:
                best, best_score = template, (same, -named)
    return best


Change = tuple[str, bytes | None]  # the key it is stored under; its value, or None when it is gone


class Templates:
    """The templates of all projects, as one process knows them. Deterministic: the same lines in the same order end alike.

    What changed has to be stored before anything that was decided by it is told: ``unsaved``, then ``saved``. What another process
    stored is taken in by ``load``; two that grew one template apart end with the same, so no write has to be refused.
    """

    def __init__(self, place_max: int = PLACE_TEMPLATES_MAX, project_max: int = PROJECT_TEMPLATES_MAX) -> None:
        self._place_max, self._project_max = place_max, project_max
        self._projects: dict[str, dict[str, _Place]] = {}
        self._sizes: dict[str, int] = {}  # templates of each project
        self._unsaved: dict[str, Template | None] = {}
        self._unsettled: set[tuple[str, str]] = set()

    def find(self, project: str, service: str, kind: str, line: str, day: int) -> Template:
        """The template of a line that came on that day (since 1970): a known one, one that now has one more value in it, or a new one."""
        name = _place_name(service, kind)
        places = self._projects.setdefault(project, {})
        place = places.get(name)
        if place is None:
            place = places[name] = _Place()
        if (project, name) in self._unsettled:
            self._unsettled.discard((project, name))
            place.settle()
        before = len(place.templates)
        found, changed = place.find(shape(line))
        self._sizes[project] = self._sizes.get(project, 0) + len(place.templates) - before
        if changed or found.used_on < day:
            found.used_on = max(day, found.used_on)
            self._unsaved[f"{project}.{name}.{found.id}"] = found
            if changed:
                self._bound(project, places, name)
        return found

    def _bound(self, project: str, places: dict[str, _Place], name: str) -> None:
        place = places[name]
        if len(place.templates) > self._place_max:
            found = [(name, template) for template in _oldest(place.templates.values())]
            self._forget(project, places, found[: max(1, len(found) // EVICTED_SHARE)])
        elif self._sizes[project] > self._project_max:
            every = [(where, template) for where, other in places.items() for template in other.templates.values()]
            # Of one day, those of the services with the most: a flood in one does not push out what the quiet ones say.
            every.sort(key=lambda item: (item[1].used_on, -len(places[item[0]].templates), item[1].number, item[1].id))
            self._forget(project, places, every[: max(1, len(every) // EVICTED_SHARE)])

    def _forget(self, project: str, places: dict[str, _Place], gone: Iterable[tuple[str, Template]]) -> None:
        """Forget templates; their fingerprints stay as they are."""
        for name, template in gone:
            place = places[name]
            self._sizes[project] -= place.remove(template.id)
            self._unsaved[f"{project}.{name}.{template.id}"] = None
            if not place.templates:
                del places[name]

    def unsaved(self, project: str | None = None) -> list[Change]:
        """What is to be stored, by key: of one project, or of all."""
        return [
            (key, _stored(template) if template is not None else None)
            for key, template in self._unsaved.items()
            if project is None or key.startswith(f"{project}.")
        ]

    def saved(self, changes: Iterable[Change]) -> None:
        """These are stored; what changed once more meanwhile stays to be."""
        for key, value in changes:
            if key in self._unsaved:
                template = self._unsaved[key]
                if (_stored(template) if template is not None else None) == value:
                    del self._unsaved[key]

    def load(self, key: str, value: bytes | None) -> None:
        """Take in what is stored, in any order; None: it was removed. Raises ValueError when the key or the value is not one of ours."""
        project, _, rest = key.partition(".")
        name, _, id = rest.partition(".")
        if not (project and name and id):
            raise ValueError(f"{key!r} names no template; expected <project>.<place>.<template>")
        places = self._projects.setdefault(project, {})
        if value is None:
            if name in places:
                self._sizes[project] -= places[name].remove(id)
                if not places[name].templates:
                    del places[name]
            return
        found = json.loads(value)
        tokens = tuple(str(token) for token in found["tokens"])
        if not tokens:
            raise ValueError(f"the template {key!r} has no words")
        place = places.setdefault(name, _Place())
        before = len(place.templates)
        place.add(Template(id, int(found["number"]), tokens, int(found["used_on"])))
        self._sizes[project] = self._sizes.get(project, 0) + len(place.templates) - before
        self._unsettled.add((project, name))

    def count(self, project: str) -> int:
        """How many templates a project has."""
        return self._sizes.get(project, 0)


@lru_cache(4_096)
def _place_name(service: str, kind: str) -> str:
    return hashlib.sha256(f"{kind}\x1f{service}".encode("utf-8", "replace")).hexdigest()[:16]


def _stored(template: Template) -> bytes:
    value = {"tokens": template.tokens, "number": template.number, "used_on": template.used_on}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
