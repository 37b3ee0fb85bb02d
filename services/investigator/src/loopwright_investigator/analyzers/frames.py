"""Which files, functions and lines of the repository the signals point at: by their stack frames, else by what their words name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwright_common.contracts.signals import Signal, StackFrame

from loopwright_investigator.code import enclosing_function, function_named, is_source, kind_of, names_in, plain_function, strip_comment
from loopwright_investigator.domain import Evidence, Located, Location, Place, abbreviated, line, plural
from loopwright_investigator.paths import FileIndex, FileMatch, read_frame_path
from loopwright_investigator.ports import History

STACKS_MAX = 8  # different stacks that are followed; the rest only repeat
FRAMES_PER_STACK_MAX = 40  # counted from the failure outwards: what called that deep is the framework
LOCATIONS_MAX = 40
WORDS_MAX = 12  # names from titles, tickets and routes that are searched for
HITS_MAX = 12  # a name in more lines than this says nothing about where
CALLER_DECAY = 0.6  # each step away from the failure: the cause is at the raising frame or one or two calls above in most stacks
NOT_IN_APP = 0.3
FROM_WORDS = 0.35  # what words name is a hint; a frame is a fact
_PATH = re.compile(r"(?<![\w/.])(?:[\w.@-]+/)*[\w.@-]+\.[A-Za-z]{1,5}(?::\d+)?\b")
_ROUTE = re.compile(r"(?<![\w/:])/(?:[\w{}<>:$*.~-]+/?){1,8}")
_URL = re.compile(r"\bhttps?://[^/\s'\"<>]+(/[^\s?#'\"<>]*)")
_QUOTED = re.compile(r"[`'\"]([A-Za-z_][\w.]{2,80})[`'\"]")
_CODE_WORD = re.compile(r"\b(?:[a-z]+(?:_[a-z0-9]+)+|[a-z]+[A-Z]\w+|[A-Z][a-z0-9]+[A-Z]\w+|[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+|\w+(?:\.\w+)+)\b")


@dataclass(frozen=True)
class _Stack:
    frames: tuple[StackFrame, ...]
    signal: Signal
    count: int
    commit: str


async def locate(
    signals: Sequence[Signal], commits: dict[str, str], fallback: str, place: Place, history: History, evidence: Evidence
) -> Located:
    """The places in the code that the example signals point at, those closest to the failure first.

    ``commits`` maps a release to its commit; ``fallback`` is where signals of unknown releases are looked up. Frames are taken when any of
    them leads to a file; words (paths, routes, quoted names in titles, bodies, transactions) only otherwise, and weigh less.
    """
    stacks = _stacks(signals, commits, fallback)
    indexes: dict[str, FileIndex] = {}
    locations: list[Location] = []
    unmapped: list[str] = []
    shown: list[str] = []
    total = sum(stack.count for stack in stacks) or 1
    minified = False
    own_frames = 0
    for stack in stacks:
        if stack.commit not in indexes:
            indexes[stack.commit] = FileIndex(await history.files(stack.commit))
        share = 0.5 + 0.5 * stack.count / total
        steps = 0
        raising_found = False
        for frame in reversed(stack.frames[-FRAMES_PER_STACK_MAX:]):
            minified = minified or read_frame_path(frame.file).minified
            own_frames += frame.in_app
            found, reason = await _find(frame, stack.commit, indexes[stack.commit], place, history)
            if found is None:
                if frame.in_app and reason:
                    unmapped.append(line(f"{frame.file or frame.module}: {reason}", 200))
                continue
            weight = share * CALLER_DECAY**steps * (1.0 if frame.in_app else NOT_IN_APP)
            raising = frame.in_app and not raising_found
            raising_found = raising_found or raising
            steps += frame.in_app
            locations.append(replace(found, weight=round(weight, 4), raising=raising))
            shown.append(
                f"{found.path}:{found.line or '?'} in {found.function or '(top level)'} <- "
                f"{line(frame.file or frame.module, 160)} ({found.how})"
            )
    locations = _merged(locations)
    frames_seen = sum(len(stack.frames) for stack in stacks)
    observed = ""
    if stacks:
        observed = evidence.observe(
            "frames",
            f"Which files of {history.name} do the frames of {plural(len(stacks), 'stack')} name?",
            "\n".join(dict.fromkeys(shown)) if shown else "None of them. " + "; ".join(dict.fromkeys(unmapped)),
            window=", ".join(sorted({abbreviated(stack.commit) for stack in stacks})),
            data={"locations": [_data(location) for location in locations[:20]], "unmapped": list(dict.fromkeys(unmapped))[:20]},
        )
    if not locations:
        words = await _by_words(signals, fallback, place, history, evidence)
        return Located(
            words,
            tuple(dict.fromkeys(unmapped))[:20],
            frames_seen,
            minified,
            bool(stacks) and own_frames == 0,
            tuple(dict.fromkeys([name for name in (observed, *(cite for found in words for cite in found.cites)) if name])),
        )
    cited = (observed,) if observed else ()
    return Located(
        tuple(replace(location, cites=cited) for location in locations[:LOCATIONS_MAX]),
        tuple(dict.fromkeys(unmapped))[:20],
        frames_seen,
        minified,
        False,
        cited,
    )


def _stacks(signals: Sequence[Signal], commits: dict[str, str], fallback: str) -> list[_Stack]:
    counts: Counter[tuple[Any, ...]] = Counter()
    kept: dict[tuple[Any, ...], Signal] = {}
    for signal in signals:
        if not signal.frames:
            continue
        key = (signal.release, tuple((frame.file, frame.function, frame.line) for frame in signal.frames))
        counts[key] += 1
        kept.setdefault(key, signal)
    return [
        _Stack(kept[key].frames, kept[key], count, commits.get(kept[key].release, fallback))
        for key, count in counts.most_common(STACKS_MAX)
    ]


async def _find(frame: StackFrame, commit: str, index: FileIndex, place: Place, history: History) -> tuple[Location | None, str]:
    """The place a frame means, or why there is none."""
    path = read_frame_path(frame.file)
    matches = index.by_path(path, place.path, place.deployed_path)
    weak = bool(matches) and matches[0].shared == 1 and matches[0].total > 1
    if (not matches or weak) and frame.module and not path.platform:
        matches = index.by_module(frame.module, place.path) or matches
    if not matches:
        if path.platform and not frame.in_app:
            return None, ""
        return None, "a built file without its source map" if path.minified else "no file of the repository has this path"
    checked = [found for match in matches[:5] if (found := await _check(frame, match, commit, history, must_agree=weak)) is not None]
    checked.sort(key=lambda pair: -pair[0])
    if not checked:
        return None, "the file of that name holds neither the line nor the function"
    if len(checked) > 1 and checked[0][0] == checked[1][0]:
        return None, f"{plural(len(matches), 'file')} fit equally: " + ", ".join(match.path for match in matches[:3])
    return checked[0][1], ""


async def _check(frame: StackFrame, match: FileMatch, commit: str, history: History, must_agree: bool) -> tuple[int, Location] | None:
    """How well what the frame says of its line agrees with the file: 3 same line, 2 line elsewhere, 1 function there, 0 cannot tell.

    None when they contradict each other and nothing but the tail of the path speaks for this file.
    """
    lines = await history.text(match.path, commit)
    if lines is None:
        return None
    number = frame.line if frame.line and 1 <= frame.line <= len(lines) else None
    wanted = frame.context.strip()
    name = plain_function(frame.function)
    has_name = bool(name) and any(name in text for text in lines)
    agreement, how = 0, match.how
    if number is not None and wanted and lines[number - 1].strip() == wanted:
        agreement, how = 3, f"{match.how}; the line is the same"
    elif wanted and len(wanted) > 3 and (elsewhere := [at for at, text in enumerate(lines, start=1) if text.strip() == wanted]):
        number = min(elsewhere, key=lambda at: abs(at - (frame.line or at)))
        agreement, how = 2, f"{match.how}; the line now stands at {number}"
    elif has_name:
        agreement, how = 1, f"{match.how}; the function is there"
        if wanted or number is None:
            # The text of the line is not in this version of the file: only the function can be trusted.
            named = function_named(lines, name, match.path)
            number = named[0] if named is not None else number
            how += ", the line is not" if wanted else ""
    elif must_agree or (wanted and match.shared < match.total) or (frame.line and number is None):
        return None
    extent = (
        enclosing_function(lines, number, match.path, frame.function) if number is not None else function_named(lines, name, match.path)
    )
    start, end = extent if extent is not None else (None, None)
    exact = number if agreement != 1 or not wanted else None
    return agreement, Location(
        match.path,
        exact,
        name or frame.function[:80],
        commit,
        1.0,
        how,
        text=lines[number - 1].strip()[:400] if number is not None and exact is not None else "",
        start=start,
        end=end,
    )


def _merged(locations: Sequence[Location]) -> list[Location]:
    """Each place once, with its greatest weight; the heaviest first."""
    best: dict[tuple[str, int | None, str, str], Location] = {}
    for location in locations:
        key = (location.path, location.line, location.function, location.commit)
        known = best.get(key)
        if known is None:
            best[key] = location
        else:
            best[key] = replace(known, weight=max(known.weight, location.weight), raising=known.raising or location.raising)
    return sorted(best.values(), key=lambda location: (-location.raising, -location.weight))


async def _by_words(signals: Sequence[Signal], commit: str, place: Place, history: History, evidence: Evidence) -> tuple[Location, ...]:
    files = await history.files(commit)
    index = FileIndex(files)
    found: dict[tuple[str, int | None], Location] = {}
    for kind, word in _words(signals)[:WORDS_MAX]:
        hits = await _look_up(kind, word, commit, index, place, history)
        code_hits = [hit for hit in hits if kind_of(hit[0]) == "code"]
        answer = "\n".join(f"{path}:{number or '?'} {text}".rstrip() for path, number, text in (code_hits or hits)[:HITS_MAX]) or "nowhere"
        observed = evidence.observe(
            "git.grep",
            f"Where does {history.name} name {word!r} ({kind} in the signals)?",
            answer,
            window=abbreviated(commit),
            data={"word": word, "hits": len(hits)},
        )
        if not 1 <= len(code_hits) <= HITS_MAX:
            continue
        for path, number, text in code_hits:
            lines = await history.text(path, commit) or []
            extent = enclosing_function(lines, number, path) if number is not None else None
            weight = FROM_WORDS / len(code_hits)
            known = found.get((path, number))
            if known is not None:
                weight += known.weight
            found[(path, number)] = Location(
                path,
                number,
                "",
                commit,
                round(min(weight, 0.6), 4),
                f"the signals name {word!r}",
                text=text.strip()[:400],
                start=extent[0] if extent else None,
                end=extent[1] if extent else None,
                from_frame=False,
                cites=(observed,) if observed else (),
            )
    return tuple(sorted(found.values(), key=lambda location: -location.weight)[:LOCATIONS_MAX])


async def _look_up(
    kind: str, word: str, commit: str, index: FileIndex, place: Place, history: History
) -> list[tuple[str, int | None, str]]:
    if kind == "path":
        path, _, number = word.partition(":")
        matches = index.by_path(read_frame_path(path), place.path, place.deployed_path)
        return [(match.path, int(number) if number.isdigit() else None, "") for match in matches]
    if kind == "module" and (matches := index.by_module(word, place.path)):
        return [(match.path, None, "") for match in matches]
    texts = _route_texts(word) if kind == "route" else [word.rsplit(".", 1)[-1] if kind == "module" else word]
    for text in texts:
        hits = [hit for hit in await history.grep(text, commit, word=kind not in ("route", "message"), limit=200) if is_source(hit.path)]
        hits = [hit for hit in hits if strip_comment(hit.text, hit.path)]
        inside = [hit for hit in hits if place.path and hit.path.startswith(place.path + "/")]
        if hits:
            return [(hit.path, hit.line, hit.text) for hit in (inside or hits)]
    return []


def _route_texts(route: str) -> list[str]:
    """A route and ever shorter heads of it, without what varies; a head of one short part would be found everywhere."""
    parts = [part for part in route.strip("/").split("/") if part]
    fixed: list[str] = []
    for part in parts:
        if re.search(r"[{}<>:*$]|^\d+$|^[0-9a-f-]{16,}$", part):
            break
        fixed.append(part)
    texts = ["/" + "/".join(fixed[:length]) for length in range(len(fixed), 0, -1)]
    return [text for text in texts if len(text) > 3]


def _words(signals: Sequence[Signal]) -> list[tuple[str, str]]:
    """(kind, word) in the order of how directly they name code: paths, functions, routes, log messages, quoted names, names in prose."""
    ranked: Counter[tuple[int, str, str]] = Counter()
    for signal in signals:
        prose = f"{signal.title}\n{signal.body[:4_000]}\n{signal.exception_value[:500]}"
        for path in _PATH.findall(prose):
            if is_source(path.partition(":")[0]):
                ranked[(0, "path", path)] += 1
        transaction = signal.transaction.strip()
        if transaction and "/" not in transaction and "." in transaction and " " not in transaction:
            ranked[(1, "module", transaction)] += 1
        urls = [signal.request.url.split("?", 1)[0].split("://", 1)[-1].partition("/")[2]] if signal.request is not None else []
        routes = [*_URL.findall(prose), *(f"/{url}" for url in urls if url), *_ROUTE.findall(f"{transaction}\n{_URL.sub(' ', prose)}")]
        for route in routes:
            ranked[(2, "route", route.rstrip("/.,"))] += 1
        if signal.kind.value == "log" and (message := _fixed_text(signal.title)):
            ranked[(3, "message", message)] += 1
        for name in _QUOTED.findall(prose):
            ranked[(4, "name", name)] += 1
        for name in _CODE_WORD.findall(prose):
            if "." not in name and names_in(name):
                ranked[(5, "name", name)] += 1
    ordered = sorted(ranked.items(), key=lambda item: (item[0][0], -item[1], item[0][2]))
    return list(dict.fromkeys((kind, word) for (_, kind, word), _ in ordered if 3 < len(word) < 200))


def _fixed_text(message: str) -> str:
    """The longest run of a log message that does not look like a value: what the source code holds literally."""
    runs = re.split(r"[\d%{}<>'\"=\[\]]+|\b[0-9a-f]{8,}\b|:\s", message)
    longest = max((run.strip() for run in runs), key=len, default="")
    return longest if len(longest) >= 10 else ""


def _data(location: Location) -> dict[str, Any]:
    return {
        "path": location.path,
        "line": location.line,
        "function": location.function,
        "weight": location.weight,
        "raising": location.raising,
        "how": location.how,
    }
