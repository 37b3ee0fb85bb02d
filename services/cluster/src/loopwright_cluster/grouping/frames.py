"""A stack as two occurrences of one problem share it: names without what compilers, bundlers and proxies count, no plumbing, no recursion.

`place` is what one frame says, `stack` what all of them say together. In each language the names of lambdas, closures and generated code
are brought to one form, `enclosing<lambda>`; frames that come and go with optimisation (reflection, proxies, accessors, inlined
comprehensions) are left out. Line numbers never count: they change with every edit above them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from loopwright_common.contracts.signals import StackFrame

from loopwright_cluster.grouping.normalise import normalise_file
from loopwright_cluster.grouping.vocabulary import words

PLACES_MAX = 30  # distinct ones, innermost; what lies further out is the framework's or the caller's business
REMEMBERED_MAX = 16_384  # a program's frames repeat: remembering them is most of the known path's speed
NAME_CHARS_MAX = 512
CYCLE_SHARE = 2
LAMBDA = "<lambda>"
ANONYMOUS = "<anonymous>"
MINIFIED = "<min>"
UNTELLING = frozenset({LAMBDA, ANONYMOUS, MINIFIED, "<module>", "<unknown>"})

# Names of the frame itself: what its place in a stack depends on (a JIT, a proxy, a version), never on the problem.
_PLUMBING_FUNCTION = re.compile(
    r"^(?:<listcomp>|<dictcomp>|<setcomp>|<genexpr>|access\$\w{1,64}|__webpack_require__|__webpack_require__\.\w{1,16}|webpackJsonpCallback"
    r"|_callee\d{0,6}\$?|asyncGeneratorStep|_asyncToGenerator|tryCatch|_next|_throw|resumeWith|__closure__"
    r"|.{0,256}\.<(?:listcomp|dictcomp|setcomp|genexpr)>)$"
)
_PLUMBING_MODULE = re.compile(
    r"(?:^|[./])(?:GeneratedMethodAccessor|GeneratedConstructorAccessor|GeneratedSerializationConstructorAccessor)\d{0,9}\b"
    r"|^(?:sun|jdk\.internal|com\.sun)\.(?:reflect|proxy)\b|^java\.lang\.reflect\b|^java\.lang\.invoke\b|^jdk\.proxy\d"
    r"|\$\$(?:EnhancerBy|FastClassBy|SpringCGLIB|Lambda)|\$\$Lambda|\$ByteBuddy\$|\$HibernateProxy|\$MockitoMock|(?:^|\.)\$?Proxy\d{1,6}$"
    r"|^System\.Runtime\.(?:CompilerServices|ExceptionServices)\b|^kotlin\.coroutines\.jvm\.internal\b|^kotlinx\.coroutines\b"
    r"|^<frozen importlib"
)
# Known places of what is not the product's own, for senders that do not say: runtimes, package folders, frameworks of the big ecosystems.
_FOREIGN_FILE = re.compile(
    r"(?:^|[/\\])(?:site-packages|dist-packages|node_modules|bower_components|vendor/bundle|gems|jre|jdk)[/\\]"
    r"|(?:^|[/\\])lib[/\\]python\d|(?:^|[/\\])lib[/\\]ruby[/\\]|[/\\]go[/\\]pkg[/\\]mod[/\\]|[/\\]go[/\\]src[/\\](?:runtime|net|internal)[/\\]"
    r"|(?:^|[/\\])\.cargo[/\\]|(?:^|[/\\])rustc[/\\]|^node:|^internal/[\w/-]{1,100}(?:\.js)?$|^<frozen |^<(?:string|anonymous)>$"
    r"|(?:^|[/\\])usr[/\\]local[/\\]go[/\\]|[/\\]\.(?:rbenv|rvm|pyenv|nvm)[/\\]|^native(?: |$)|^\[native code\]"
    r"|@v\d{1,4}\.[\w.+-]{1,60}/|(?:^|/)vendor/(?:[\w-]{1,60}\.[a-z]{2,8}/|[\w.-]{1,60}/[\w.-]{1,60}/.{1,300}\.php$)"
    r"|^(?:/usr)?/lib(?:32|64)?/|^lib(?:c|m|dl|rt|pthread|stdc\+\+|c\+\+(?:abi)?|gcc_s|dispatch|objc|swift\w{0,40}|system_\w{1,40})"
    r"(?:[\d.-][\w.-]{0,40}?)?\.(?:so|dylib|tbd)|^/build/glibc|^\.{1,2}/(?:sysdeps|nptl|csu)/|/include/c\+\+/|^dart:|^package:flutter/|^org-dartlang-sdk:|(?:^|/)deps/\w{1,60}/lib/"
    r"|(?:^|/)(?:chunk-)?(?:vendors?|framework|polyfills)[-.~](?=[0-9A-Za-z_-]{0,39}\d)[0-9A-Za-z_-]{6,40}(?:\.chunk)?\.m?js$"
)
_FOREIGN_MODULE = re.compile(
    r"^(?:java|javax|jdk|sun|com\.sun|jakarta|kotlin|kotlinx|scala|akka|groovy|clojure|dalvik|android|androidx|org\.(?:springframework"
    r"|apache|hibernate|eclipse|junit|jboss|codehaus|slf4j|mockito)|io\.(?:netty|undertow|grpc|vertx|reactivex|micrometer)|reactor\.core"
    r"|com\.(?:zaxxer|fasterxml|google\.common|mysql|android)|ch\.qos|System|Microsoft|MS\.Internal|Newtonsoft|NUnit|Xunit"
    r"|net/http|net/rpc|database/sql|encoding/\w{1,20}|internal/\w{1,20}|crypto/\w{1,20}|text/template|html/template|os/exec|sync/atomic)(?:$|[./])"
    r"|^(?:runtime|reflect|bufio|AppKit|AttributeGraph|CFNetwork|Combine|CoreData|CoreFoundation|Foundation|GraphicsServices|QuartzCore|SwiftUI"
    r"|UIKit|UIKitCore|dyld)$"
)

PACKAGES = words("packages")
PACKAGE_PARTS_MAX = 3  # of a name in that list

_SIGNATURE = re.compile(r"(?<=[\w>$\]])\((?!\*)[^()]{0,400}(?:\([^()]{0,200}\)[^()]{0,200}){0,8}\).{0,64}$")
_ARITY = re.compile(r"`\d{1,3}(?:\[[^\]]{0,256}\])?")
_CLONE = re.compile(
    r"\s?\[(?:clone|as|inlined)[^\]]{0,128}\]|\$VARIANT\$\w{1,16}\b|\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d{1,20})?\b|\[\.\.\.\]"
)
_ADDRESS = re.compile(r"(?:::h[0-9a-f]{16}\b|@?\b0x[0-9a-fA-F]{1,16}\b|\+0x[0-9a-fA-F]{1,16})")
_DOTNET = (
    (re.compile(r"[.+]?<>c(?:__DisplayClass\d{1,6}(?:_\d{1,6})?)?(?:`\d{1,3})?(?=[.+]|$)"), ""),
    (re.compile(r"<(\w{0,128})>b__\d{1,6}(?:_\d{1,6})?"), rf"\1{LAMBDA}"),
    (re.compile(r"<(\w{0,128})>g__(\w{1,128})\|\d{1,6}(?:_\d{1,6})?"), r"\1.\2"),
    (re.compile(r"<(\w{1,128})>d__\d{1,6}(?:[.+]MoveNext)?"), r"\1"),
)
_JVM = (
    (re.compile(r"(\w)\$lambda[-$]\d{1,6}(?:[-$](?:lambda[-$])?\d{1,6}){0,6}"), rf"\1{LAMBDA}"),
    (re.compile(r"\blambda\$(?:null\$)?(\w{1,128}?)\$\d{1,6}(?:\$\w{1,32})?\b"), rf"\1{LAMBDA}"),
    (re.compile(r"\blambda\$(\w{1,128})\b"), rf"\1{LAMBDA}"),
    (re.compile(r"\$?\$lambda\$\d{1,9}(?:/(?:0x)?[0-9a-f]{1,20})?(?:@[0-9a-f]{1,16})?"), LAMBDA),
    (re.compile(r"(?:\$anonfun\$)+(\w{1,128}?)(?:\$\d{1,6})+(?:\$adapted)?\b"), rf"\1{LAMBDA}"),
    (re.compile(r"\$?\$anonfun(?:\$\d{1,6})*"), LAMBDA),
    (re.compile(r"\$(?:default|suspendImpl|mc[A-Z]{1,6}\$sp|adapted|extension\d?)\b"), ""),
    (re.compile(r"_closure\d{1,6}"), LAMBDA),
    (re.compile(r"\$\d{1,6}(?=$|[.$])"), "$"),
    (re.compile(r"(?<=Proxy)\d{1,6}\b"), ""),
)
_GO = (
    (
        re.compile(
            r"(?:\.func\d{1,6}|\.gowrap\d{1,6}|\.deferwrap\d{1,6})(?:\.\d{1,6}|\.func\d{1,6}|\.gowrap\d{1,6}|\.deferwrap\d{1,6}){0,8}"
        ),
        LAMBDA,
    ),
    (re.compile(r"-fm$|-range\d{1,6}"), ""),
)
_OTHERS = (
    (re.compile(r"^(?:block|rescue|ensure|rescue in block|ensure in block)(?: \(\d{1,4} levels\))? in "), ""),
    (
        re.compile(
            r"^(?:partial apply (?:forwarder )?for )?(?:implicit )?closure #\d{1,4} (?:\([^)]{0,128}\) )?"
            r"(?:(?:->|async) \S{1,64} )?in (.{1,256})$"
        ),
        rf"\1{LAMBDA}",
    ),
    (re.compile(r"^__\d{1,6}(?=[-+]\[)"), ""),
    (re.compile(r"_block_invoke(?:[._]\d{1,6})?$"), LAMBDA),
    (re.compile(r"::\{\{closure\}\}|::\{closure(?:#\d{1,6}|_env#\d{1,6})?\}|\{closure(?::[^{}]{0,256})?\}"), LAMBDA),
    (
        re.compile(r"\{lambda\([^{}]{0,256}\)#\d{1,6}\}(?:::operator\(\))?|::'?lambda\d{0,4}'?(?:\([^()]{0,64}\))?(?:::operator\(\))?"),
        LAMBDA,
    ),
    (re.compile(r"\(anonymous (?:namespace|class)\)::"), ""),
    (re.compile(r"^(?:async|new|get|set|static) "), ""),
    (re.compile(r"^(?:Object|Module|Function|Generator|Array|Promise|exports|module\.exports|window|global|globalThis|self)\.(?=\w)"), ""),
    (re.compile(r"^(?:async\*|promise callback\*|setTimeout handler\*)"), ""),
    (re.compile(r"/<$|/[\w$.]{1,64}<$"), LAMBDA),  # Firefox: a function without a name within one that has one
    (re.compile(r"(?<=\w)\$(?:\d{1,4})?$"), ""),  # a bundler's second `render` is `render$1`; regenerator's is `render$`
    (re.compile(r"\w{0,64}[a-z]Element\.(?=<anonymous>$|on[a-z]{1,32}$)"), ""),
    (re.compile(r"__\d{4,20}(?:_\d{1,20})?$"), ""),  # a compiled template
    (re.compile(r"(?<=[_$-])(?=[0-9a-zA-Z]{0,39}\d)(?=[0-9a-f]{0,39}[a-f])[0-9a-f]{6,40}\b|(?<=_)\d{5,20}\b"), ""),
    (re.compile(r"(?<=lambda)[-_$]?\d{1,9}\b|(?<=closure)[-_$#]?\d{1,9}\b|(?<=anonymous)[-_$#]?\d{1,9}\b"), ""),
)
_NAMELESS = re.compile(
    r"^(?:|\?|<redacted>|_mh_execute_header"
    r"|<?\(?(?:anonymous|unknown|none|null)(?: (?:fn|function|closure))?\)?>?|anon|<lambda>|lambda|fn|\(\)|=>|\{anonymous\}"
    r"|[\w$.]{1,64}\.(?:<anonymous>|\(anonymous(?: function)?\)|anonymous)|eval|<eval>|eval code)$",
    re.IGNORECASE,
)
_MODULE_LEVEL = frozenset(
    {"<module>", "<main>", "<top (required)>", "<top>", "global code", "module code", "Object.<anonymous>", "(main)", "<script>"}
)


@lru_cache(REMEMBERED_MAX)
def function_name(name: str) -> str:
    """A function's name as two builds share it; empty for a frame that tells nothing (a comprehension, an accessor)."""
    text = name[:NAME_CHARS_MAX].strip()
    if text in _MODULE_LEVEL:
        return "<module>"
    if _PLUMBING_FUNCTION.match(text):
        return ""
    if text.isidentifier() and text.isalpha() and text.islower() and len(text) > 9:
        return text  # nothing in it that anything below would change, nor a word for the nameless
    text = text.replace("<locals>.", "")
    if "(" in text and not text.startswith(("(", "-[", "+[")):
        text = _SIGNATURE.sub("", text)
    if "`" in text:
        text = _ARITY.sub("", text)
    text = _ADDRESS.sub("", _CLONE.sub("", text))
    if "<" in text:
        for pattern, plain in _DOTNET:
            text = pattern.sub(plain, text)
    for patterns in (_JVM, _GO, _OTHERS):
        for pattern, plain in patterns:
            text = pattern.sub(plain, text)
    text = text.strip(" .$").replace(".prototype.", ".")
    text = text.rstrip("_") if not text.startswith("__") else text
    if "#" in text:
        text = text.rpartition("#")[2] or text  # Ruby 3.4 writes `Order#total` where earlier ones wrote `total`
    while text.endswith(LAMBDA + LAMBDA):
        text = text.removesuffix(LAMBDA)
    if text in (LAMBDA, f"null{LAMBDA}") or (text.endswith(f".{LAMBDA}") and _NAMELESS.match(text)):
        return LAMBDA
    return ANONYMOUS if _NAMELESS.match(text) else text


_BUNDLE = re.compile(
    r"\.min\.m?js$|(?:^|[/.-])(?:bundle|chunk|vendors?|runtime|polyfills|main|app|index)[-.~]"
    r"(?=[0-9A-Za-z_-]{0,39}\d|[0-9A-Za-z_-]{0,7}[a-z][A-Z])[0-9A-Za-z_-]{5,40}\.(?:chunk\.)?m?js$|\.bundle\.m?js$"
    r"|\.chunk\.m?js$|(?:^|/)(?:bundle|vendors?)\.m?js$|(?:^|/)\d{1,6}\.[0-9a-f]{6,40}\.m?js$|[-.](?=[0-9A-Za-z_-]{0,39}\d)[0-9A-Za-z_-]{8,40}\.m?js$"
)
_QUERY = re.compile(r"[?#].{0,512}$")
_NAMED_BUNDLE = re.compile(
    r"(?:(?<=main)|(?<=app)|(?<=index)|(?<=bundle)|(?<=chunk)|(?<=vendor)|(?<=vendors)|(?<=runtime))[-.~]"
    r"(?=[0-9A-Za-z_-]{0,39}\d|[0-9A-Za-z_-]{0,7}[a-z][A-Z])[0-9A-Za-z_-]{5,40}"
    r"(?=\.(?:chunk\.)?m?js$)"
)
_CHUNK_NUMBER = re.compile(r"(?:^|(?<=/))\d{1,6}(?=\.(?:\*\.)?(?:chunk\.)?m?js$)")
_HASHED = re.compile(r"(?<=[.~_-])(?=[0-9A-Za-z_]{0,39}\d)[0-9A-Za-z_]{6,40}(?=\.(?:chunk\.|bundle\.|min\.)?m?[jt]sx?$)")
_MIXED_HASH = re.compile(r"(?<=[.-])(?=[0-9A-Za-z_]{0,7}[a-z][A-Z])[0-9A-Za-z_]{8}(?=\.m?js$)")  # Vite's, where it has no digit
# Where an image, a laptop and a build farm put the same tree: in a folder that is the tree itself, or among others under its own name.
_HOLDERS = r"(?:srv|opt|project|builds?|root|data|mnt|tmp|release|var/(?:www|task)|(?:home|Users)/[^/]{1,64})"
_TREE = re.compile(
    r"^/(?:app|code|src|workspaces?|var/(?:www/html|app)|usr/src/app|github/workspace|a/\d{1,3}/s"
    rf"|(?:home/runner/work|__w)/[^/]{{1,64}}/[^/]{{1,64}}|(?:{_HOLDERS}/){{1,3}}app)/(?=[^/]{{1,200}}/)"
)
_HELD = re.compile(rf"^/(?:{_HOLDERS}/){{1,3}}(?=[^/]{{1,200}}/)")
# The tree's own name differs from place to place: it ends where the sources begin, unless one of several packages of the tree begins first.
_TREE_NAME = re.compile(
    r"^(?:(?!(?:packages|apps|services|modules|crates|libs|components|plugins|projects)/)[^/]{1,200}/){1,6}?(?=(?:src|lib|app|dist|cmd)/)"
    r"|^(?:[^/]{1,200}/){0,6}?(?=([^/]{1,200})/\1/)\1/"  # `shop/shop/models.py`: the checkout of a package of its name
)
_PACKAGE_ROOT = re.compile(r"^.{0,400}?(?:site-packages|dist-packages|node_modules|gems|pkg/mod)/")
_NO_HOST = re.compile(r"^(?:file://(/)|[a-z][a-z0-9+.-]{1,15}:///(?:\([\w-]{1,40}\)/\./)?)")  # after three slashes comes a path
_RELEASE_FOLDER = re.compile(r"(?:^|(?<=/))v\d{6,20}/")
_JS = re.compile(r"\.[cm]?jsx?$")
MINIFIED_LINE_MAX = 5  # a bundle is a few very long lines, so that its columns are in the thousands
MINIFIED_COLUMN_MIN = 300
MINIFIED_NAME_CHARS_MAX = 2


@lru_cache(REMEMBERED_MAX)
def file_name(path: str) -> str:
    """A source file's path as two releases share it: without host, query, hash, version and the folders above the project."""
    text = _NO_HOST.sub(r"\1", _QUERY.sub("", path.replace("\\", "/")))
    text = _in_its_tree(re.sub(r"^[A-Za-z]:(?=/)", "", text))
    text = _PACKAGE_ROOT.sub("", _MIXED_HASH.sub("*", _HASHED.sub("*", _NAMED_BUNDLE.sub(".*", text))))
    return _CHUNK_NUMBER.sub("*", normalise_file(_RELEASE_FOLDER.sub("", text)))


def _in_its_tree(path: str) -> str:
    if not path.startswith("/"):
        return path
    inside = _TREE.sub("", path)
    if inside != path:
        return inside
    held = _HELD.sub("", path)
    return _TREE_NAME.sub("", held) if held != path else path


def _is_bundle(path: str) -> bool:
    return _BUNDLE.search(_QUERY.sub("", path)) is not None


_SCRIPT = re.compile(r"\.(?:[cm]?[jt]sx?|vue|svelte)(?:[?#].{0,512})?$")


def _as_browsers_share_it(name: str) -> str:
    """Chrome says `Cart.total` where others say `total`, and Firefox says in what a function without a name is."""
    if name.endswith(LAMBDA):
        return ANONYMOUS
    return name if name in UNTELLING else name.partition(" ")[0].rpartition(".")[2] or name


_STATE_MACHINE = re.compile(r"^(.{1,300})[.+]<(\w{1,128})>d__\d{1,6}(?:`\d{1,3})?$")


def _place(module: str, file: str, function: str, minified: bool) -> str:
    if module and _PLUMBING_MODULE.search(module):
        return ""
    if function == "invokeSuspend":
        # Kotlin: `PayUseCase$execute$2` is what `execute` goes on as when it has waited, and often all that is left of it on the stack.
        module, _, function = function_name(module).rpartition("$")
        if not module:
            return ""
    elif function == "MoveNext" and (found := _STATE_MACHINE.match(module)):
        module, function = found[1], found[2]  # .NET: the same, as `Cart.<PayAsync>d__3`
    # Bundlers give such names anew with every build.
    name = MINIFIED if minified and len(function.rpartition(".")[2]) <= MINIFIED_NAME_CHARS_MAX else function_name(function)
    if not name:
        return ""
    if _SCRIPT.search(file or module):
        name = _as_browsers_share_it(name)
    if minified and name == ANONYMOUS:
        name = MINIFIED  # whether a function without a name gets one is the minifier's choice too
    where = (
        function_name(module) if module and not module.startswith(("http:", "https:")) and "/" not in module else file_name(module or file)
    )
    if where == ANONYMOUS:
        where = file_name(file)
    if where and name.startswith(f"{where}."):
        name = name[len(where) + 1 :]
    return f"{where}:{name}"


def place(frame: StackFrame) -> str:
    """Where the frame is, as `module:function` or `file:function`; empty for plumbing."""
    return place_of(frame.module, frame.file, frame.function, far_right=is_far_right(frame))


def is_far_right(frame: StackFrame) -> bool:
    """Whether the frame is at the top and far to the right of its file, as only in a bundle."""
    return frame.column is not None and frame.column >= MINIFIED_COLUMN_MIN and (frame.line or 0) <= MINIFIED_LINE_MAX


@lru_cache(REMEMBERED_MAX)
def place_of(module: str, file: str, function: str, *, far_right: bool = False) -> str:
    """As `place`, from a frame's parts."""
    return _place(module, file, function, bool(file) and (_is_bundle(file) or (far_right and _JS.search(file) is not None)))


def tells(place: str) -> bool:
    """Whether a place names a function that a person could find."""
    return place.rpartition(":")[2] not in UNTELLING


@lru_cache(REMEMBERED_MAX)
def is_foreign(module: str, file: str) -> bool:
    """Whether the place is known to be a runtime's or a package's, whatever its sender says."""
    if module and (_FOREIGN_MODULE.match(module) or _FOREIGN_FILE.search(module) or _is_package(module.split(".", PACKAGE_PARTS_MAX))):
        return True
    if not file:
        return False
    return _FOREIGN_FILE.search(file) is not None or (file.endswith(".py") and _is_package(file[:-3].split("/", PACKAGE_PARTS_MAX)))


def _is_package(parts: Sequence[str]) -> bool:
    return any(".".join(parts[:count]) in PACKAGES for count in range(1, PACKAGE_PARTS_MAX + 1))


def collapse(places: Sequence[str]) -> tuple[str, ...]:
    """Each place once, where it was entered first, and the innermost at the end: however deep a recursion went, however it wound."""
    distinct = list(dict.fromkeys(item for item in places if item))
    last = next((item for item in reversed(places) if item), "")
    if distinct and distinct[-1] != last:
        distinct.append(last)
    return tuple(distinct[-PLACES_MAX:])


def cycle(places: Iterable[str]) -> tuple[str, ...]:
    """The places that a runaway recursion goes through, sorted: where in the circle it ended, and how it was entered, is chance."""
    counts: dict[str, int] = {}
    for item in places:
        if item:
            counts[item] = counts.get(item, 0) + 1
    often = max(counts.values(), default=0)
    # A function on the way in may call itself a few times too: what goes round has far more frames than that.
    return tuple(sorted(item for item, count in counts.items() if count > 1 and count * CYCLE_SHARE >= often))
