"""What a text by a person says, taken apart once for all its comparisons: words, compound names, lines, quotes, errors, code and prose.

No vocabulary of any product: what is a rare word is learned from the project's own stream (`lexicon`). All patterns have bounded repeats,
since the text is hostile, and every part is bounded.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from loopwright_cluster.grouping.anchors import stem

TEXT_CHARS_MAX = 2_000  # what an exemplar keeps of a body
WORDS_MAX = 600
PROSE_WORDS_MAX = 150
ERROR_LINES_MAX = 12
NAMES_MAX = 120
LINE_CHARS_MIN, LINE_CHARS_MAX = 12, 300  # shorter lines (`}`, `fn main() {`) are everybody's
WORDINGS_REMEMBERED_MAX = 12_288  # about 10 KB each; reading a text takes ten times as long as comparing it
TITLE_WEIGHT = 2  # a title's word counts as two more: titles are what reporters choose with care

_WORD = re.compile(r"[^\W_]{1,64}")
_COMPOUND = re.compile(
    r"[A-Za-z_]\w{0,63}(?:(?:::|\.|->|#)[A-Za-z_]\w{0,63}){1,8}!?|[A-Za-z][^\W_]{0,63}_\w{1,64}!?|[a-z]{1,32}[0-9]{0,8}(?:[A-Z][a-z0-9]{0,32}){1,8}"
    r"|(?:[A-Z][a-z0-9]{1,32}){2,8}|\w{1,64}!(?=[\s(\[{]|$)|[A-Z]{1,5}-?\d{2,6}|0x[0-9a-f]{1,16}"
)
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\da-zA-Z_]+")
_FENCED = re.compile(r"```[^\n]{0,80}\n(.*?)(?:```|\Z)", re.DOTALL)
_TICKED = re.compile(r"`([^`\n]{2,80})`")
_QUOTED = re.compile(r"[\"'“‘]([^\"'”’\n]{4,80})[\"'”’]")
_TROUBLE = re.compile(
    r"error|exception|\bfail|panic|assert|\babort|\bcrash|\bfatal|\bfault|segfault|segmentation|cannot|can't|couldn't|unable|invalid"
    r"|undefined|expected|mismatch|missing|not found|unresolved",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+")
_SPACE = re.compile(r"\s+")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Wording:
    """One text. ``whole`` counts its words, the title's more; names and quotes are in lower case; ``lines`` are hashes."""

    title: frozenset[str]
    whole: Mapping[str, int]
    title_names: frozenset[str]
    names: frozenset[str]
    quotes: frozenset[str]
    lines: frozenset[int]
    title_pairs: frozenset[Pair]
    error_pairs: frozenset[Pair]
    title_grams: frozenset[str]
    code: frozenset[str]
    prose: frozenset[str]
    length: int

    @property
    def counted(self) -> list[str]:
        """Everything whose rarity matters, each once, kinds kept apart by a prefix."""
        return [
            *self.whole,
            *(f"n:{name}" for name in self.names | self.quotes),
            *(f"l:{line}" for line in self.lines),
            *(f"b:{one} {two}" for one, two in self.title_pairs),
            *(f"e:{one} {two}" for one, two in self.error_pairs),
        ]


def word_list(text: str) -> list[str]:
    """The words in order: a compound name whole and in its parts, light stems, nothing of one character."""
    found: list[str] = []
    for match in _WORD.finditer(text):
        word = match.group()
        parts = [word] if word.islower() or word.isdigit() else _PARTS.findall(word)
        if len(parts) > 1:
            found.append(word.lower())
        found.extend(stem(part) for part in parts if 1 < len(part) < 40)
        if len(found) >= WORDS_MAX:
            break
    return found


def read(title: str, body: str) -> Wording:
    """Take a title and a body apart. Pure; the same words whatever the case of the text around them."""
    body = body[:TEXT_CHARS_MAX]
    title_words, body_words = word_list(title), word_list(body)
    whole = Counter(body_words)
    for word in title_words:
        whole[word] += TITLE_WEIGHT
    ticked = {text.strip().lower() for text in _TICKED.findall(body)}
    title_names = _names(title) | {text.strip().lower() for text in _TICKED.findall(title)}
    joined = f" {' '.join(title_words)} "
    return Wording(
        title=frozenset(title_words),
        whole=dict(whole),
        title_names=frozenset(title_names),
        names=frozenset(sorted(title_names | ticked | _names(body))[:NAMES_MAX]),
        quotes=frozenset(
            {text.strip().lower() for text in _QUOTED.findall(f"{title}\n{body}")} | {text for text in ticked if len(text) > 5}
        ),
        lines=frozenset(_lines(body)),
        title_pairs=frozenset(itertools.pairwise(title_words)),
        error_pairs=frozenset(_error_pairs(f"{title}\n{body}")),
        title_grams=frozenset(joined[at : at + 4] for at in range(len(joined) - 3)),
        code=frozenset(word_list("\n".join(_FENCED.findall(body)))),
        prose=frozenset(word_list(_FENCED.sub("\n", body))[:PROSE_WORDS_MAX]),
        length=len(title_words) + len(body_words),
    )


@lru_cache(maxsize=WORDINGS_REMEMBERED_MAX)
def wording_of(title: str, body: str) -> Wording:
    """``read``, remembered: what is compared again and again is taken apart once."""
    return read(title, body)


def _names(text: str) -> set[str]:
    return {name.lower().strip(".:") for name in _COMPOUND.findall(text)}


def _lines(text: str) -> set[int]:
    found = set()
    for line in text.split("\n"):
        bare = _NUMBER.sub("0", _SPACE.sub("", line.lower()))
        if LINE_CHARS_MIN <= len(bare) <= LINE_CHARS_MAX:
            found.add(crc32(bare.encode("utf-8", "replace")))
    return found


def _error_pairs(text: str) -> set[Pair]:
    pairs: set[Pair] = set()
    telling = [line for line in text.split("\n") if _TROUBLE.search(line[:LINE_CHARS_MAX])]
    for line in telling[:ERROR_LINES_MAX]:
        said = word_list(line[:LINE_CHARS_MAX])
        pairs.update(itertools.pairwise(said))
    return pairs
