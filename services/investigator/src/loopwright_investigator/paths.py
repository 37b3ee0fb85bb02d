"""From what a stack frame calls a file to the file of the repository. Pure.

A deployed path differs from the repository's by what stands in front of it (``/app``, ``/home/runner/work``, ``webpack:///./``, a package
folder in ``site-packages``), so the longest common tail decides, and what the frame says of the line or function confirms or refutes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from loopwright_investigator.code import is_source

PARTS_MAX = 64
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]{1,40}:/{0,3}(?![\\/]*$)")
_POSITION = re.compile(r"(:\d+){1,2}$")
_EVALUATED = re.compile(r"^(.*?)[ (]+(?:eval|<anonymous>).*$")
# After these a path is relative to a place where other people's packages are, and sometimes the product's own once it is installed.
_PACKAGE_ROOTS = ("site-packages", "dist-packages", "node_modules", "gems", "mod")
_PLATFORM = re.compile(
    r"(^|/)(usr/lib/(python|ruby|go|node|jvm)|usr/local/(lib/(python|ruby)|go/src)|lib/python\d|Python\.framework|rustc/|rustlib/|"
    r"cargo/registry|go/pkg/mod|\.m2/|gems/|node_modules/|site-packages/|dist-packages/|\.pyenv/|webpack/bootstrap|frozen importlib)"
    r"|^(node|native|<frozen |java\.|javax\.|sun\.|jdk\.|internal/)"
)
_MINIFIED = re.compile(r"(\.min\.js|[.-][0-9a-f]{8,32}\.(m?js|css)|[.-](bundle|chunk)\.js|/_next/static/|/static/js/)", re.IGNORECASE)


@dataclass(frozen=True)
class FramePath:
    """A frame's path taken apart. ``package_parts`` is what follows ``site-packages`` and such; None elsewhere."""

    parts: tuple[str, ...]
    package_parts: tuple[str, ...] | None
    platform: bool
    minified: bool
    absolute: bool


def read_frame_path(text: str) -> FramePath:
    """A frame's file without scheme, host, query, position, drive and dot parts. Never raises, whatever the text is."""
    raw = "".join(character for character in text if character.isprintable())
    plain = raw.strip().replace("\\", "/")
    evaluated = _EVALUATED.match(plain)
    if evaluated and evaluated[1]:
        plain = evaluated[1]
    scheme = _SCHEME.match(plain)
    is_url = scheme is not None and len(scheme[0].rstrip(":/")) > 1
    if is_url and scheme is not None:
        is_web = scheme[0].lower().startswith(("http:", "https:"))
        plain = plain[scheme.end() :]
        plain = unquote(plain.split("?", 1)[0].split("#", 1)[0])
        if is_web:
            plain = plain.partition("/")[2]
    elif re.match(r"^[A-Za-z]:/", plain):
        plain = plain[2:]
    plain = _POSITION.sub("", plain.split("?", 1)[0] if is_url else plain)
    parts: list[str] = []
    for part in plain.split("/")[-PARTS_MAX:]:
        if part in ("", ".", "~"):
            continue
        if part == "..":
            if parts:
                parts.pop()
            continue
        parts.append(part)
    package = None
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] in _PACKAGE_ROOTS and position + 1 < len(parts):
            package = tuple(parts[position + 1 :])
            break
    if package and parts[-len(package) - 1] in ("node_modules",) and package[0].startswith("@") and len(package) > 2:
        package = package[1:]  # a scope is no folder of the package's repository
    absolute = plain.startswith("/") or is_url
    return FramePath(tuple(parts), package, bool(_PLATFORM.search(raw.replace("\\", "/"))), bool(_MINIFIED.search(plain)), absolute)


@dataclass(frozen=True)
class FileMatch:
    """A file of the repository with how much of the frame's path it shares: ``shared`` of ``total`` parts."""

    path: str
    shared: int
    total: int
    how: str


class FileIndex:
    """The files of a repository by name, to look frames up in."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = frozenset(files)
        self._by_name: dict[str, list[tuple[str, ...]]] = {}
        self._by_stem: dict[str, list[tuple[str, ...]]] = {}
        for path in files:
            parts = tuple(path.split("/"))
            self._by_name.setdefault(parts[-1], []).append(parts)
            if is_source(path):
                self._by_stem.setdefault(parts[-1].rsplit(".", 1)[0], []).append(parts)

    def by_path(self, frame: FramePath, service_path: str = "", deployed_path: str = "") -> list[FileMatch]:
        """Files that the frame's path may mean, best first; more than one only when nothing in the path tells them apart."""
        if not frame.parts:
            return []
        deployed = tuple(part for part in deployed_path.replace("\\", "/").split("/") if part not in ("", "."))
        if deployed and frame.parts[: len(deployed)] == deployed and len(frame.parts) > len(deployed):
            tail = frame.parts[len(deployed) :]
            for prefix in (service_path, ""):
                path = "/".join((*[part for part in prefix.split("/") if part], *tail))
                if path in self.files:
                    return [FileMatch(path, len(tail), len(tail), "deployed path")]
        if frame.package_parts is not None:
            return self._installed(frame.package_parts)
        wanted = frame.parts
        found = self._longest(self._by_name.get(wanted[-1], []), wanted)
        found = _prefer(found, service_path)
        shared = found[0][1] if found else 0
        if shared == 0 or (shared == 1 and len(wanted) > 1 and len(found) > 1):
            return []  # only the file's name is the same, and several files have it
        if frame.platform and shared < min(3, len(wanted)):
            return []
        how = "same path" if shared == len(wanted) else f"last {shared} parts of the path" if shared > 1 else "only the file's name"
        return [FileMatch("/".join(parts), shared, len(wanted), how) for parts, shared in found]

    def by_module(self, module: str, service_path: str = "") -> list[FileMatch]:
        """Files that a module name may mean: ``shop.cart.total``, ``com.acme.Cart$Line``, ``github.com/acme/shop/cart``."""
        words = [word for word in re.split(r"[./\\:$#]+", module[:512]) if word]
        # The last words may be a class and a function inside the file; the file is then named by a word before them.
        for dropped in range(0, min(3, len(words))):
            wanted = tuple(words[: len(words) - dropped])
            for candidate in (wanted, (*wanted, "__init__"), (*wanted, "index"), (*wanted, "mod")):
                stems = self._by_stem.get(candidate[-1], [])
                found = self._longest(stems, candidate, stem=True)
                # A folder's index is named by the folder: without one more part in common any folder of that name would do.
                needed = min(len(candidate), 2 if candidate is wanted else 3)
                good = [(parts, shared) for parts, shared in found if shared >= needed]
                if good:
                    good = _prefer(good, service_path)
                    return [FileMatch("/".join(parts), shared, len(candidate), "module name") for parts, shared in good]
        return []

    def _installed(self, wanted: tuple[str, ...]) -> list[FileMatch]:
        """The product's own package, installed: all of the path below the package root must be there, and begin where a package begins."""
        found = []
        for parts in self._by_name.get(wanted[-1], []):
            if len(wanted) < 2 or parts[-len(wanted) :] != wanted:
                continue
            before = parts[: -len(wanted)]
            if before and "/".join((*before, "__init__.py")) in self.files:
                continue  # shop/requests/models.py is not site-packages/requests/models.py
            found.append((parts, len(wanted)))
        return [FileMatch("/".join(parts), shared, len(wanted), "installed package") for parts, shared in found[:4]]

    @staticmethod
    def _longest(candidates: Sequence[tuple[str, ...]], wanted: tuple[str, ...], stem: bool = False) -> list[tuple[tuple[str, ...], int]]:
        best: list[tuple[tuple[str, ...], int]] = []
        for parts in candidates:
            compared = (*parts[:-1], parts[-1].rsplit(".", 1)[0]) if stem else parts
            shared = 0
            for ours, theirs in zip(reversed(compared), reversed(wanted), strict=False):
                if ours != theirs:
                    break
                shared += 1
            if best and shared > best[0][1]:
                best = []
            if shared and (not best or shared == best[0][1]):
                best.append((parts, shared))
        return best


def _prefer(found: list[tuple[tuple[str, ...], int]], service_path: str) -> list[tuple[tuple[str, ...], int]]:
    """Among equals: those in the service's folder, then those with the fewest folders in front."""
    if len(found) < 2:
        return found
    folder = tuple(part for part in service_path.split("/") if part)
    if folder:
        inside = [(parts, shared) for parts, shared in found if parts[: len(folder)] == folder]
        if inside:
            found = inside
    shortest = min(len(parts) for parts, _ in found)
    exact = [(parts, shared) for parts, shared in found if len(parts) == shortest]
    return exact if exact[0][1] == shortest else found
