"""Takes out of messages, stack frames and paths what differs between two occurrences of one problem.

The kinds of value and the idea of replacing each by its name follow the parameterisation that error trackers use (Sentry's
`<email>`, `<int>`, `<hex>` ...); the patterns here are our own, with bounded repeats only, since the text is hostile.
"""

from __future__ import annotations

import re
from functools import lru_cache

NAMES_REMEMBERED_MAX = (
    8_192  # a program's frames repeat: remembering them doubles the known path (15,600 to 28,000 signals/s without the bus)
)
CHARS_MAX = 2_048  # of a message; longer ones differ in their beginning or not at all

# In this order: at one position the first that fits wins, so an e-mail is never read as a host, nor a date as numbers.
_TOP_LEVEL = "com|net|org|io|dev|local|internal|svc|cloud|app|co|eu|de|uk"
_PATTERNS = (
    ("email", (r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,128}\.[A-Za-z]{2,24}",)),
    ("url", (r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>)\]}]{1,1024}",)),
    ("host", (r"\b(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?:" + _TOP_LEVEL + r")\b(?::\d{1,5})?",)),
    (
        "ip",
        (
            r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?\b",
            r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{1,4}\b",
            r"(?<![\w:])(?=[0-9a-fA-F:]{0,38}\d)(?:[0-9a-fA-F]{1,4}:){1,6}(?::[0-9a-fA-F]{1,4}){1,6}(?![\w:])",
        ),
    ),
    ("trace", (r"\b[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\b",)),
    ("uuid", (r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b",)),
    ("hash", (r"\b(?:sha(?:1|256|512):)?(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{40}|[0-9a-fA-F]{32})\b",)),
    (
        "date",
        (
            r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?",
            r"\b\d{1,2}[/.]\d{1,2}[/.]\d{4}\b",
            r"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6} {1,2}\d{1,2}(?:,? \d{4})?(?: \d{2}:\d{2}:\d{2})?",
            r"\b\d{1,2}:\d{2}:\d{2}(?:[.,]\d{1,9})?\b",
        ),
    ),
    ("duration", (r"\b\d{1,12}(?:\.\d{1,9})? ?(?:ns|µs|us|ms|msecs?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|days?|weeks?)\b",)),
    (
        "hex",
        (
            r"\b0[xX][0-9a-fA-F]{1,64}\b",
            r"\b(?=[0-9a-fA-F]{0,63}\d)(?=[0-9a-fA-F]{0,63}[a-fA-F])[0-9a-fA-F]{7,64}\b",
        ),
    ),
    ("number", (r"(?<![A-Za-z_\d.])[-+]?\d{1,32}(?:[.,]\d{1,32}){0,4}(?:[eE][-+]?\d{1,4})?%?(?![A-Za-z_\d])",)),
    ("quoted", (r"\"[^\"\n]{1,256}\"", r"(?<!\w)'[^'\n]{1,256}'(?!\w)", r"`[^`\n]{1,256}`")),
)
_VALUE = re.compile("|".join(f"(?P<{name}>{'|'.join(forms)})" for name, forms in _PATTERNS))
_SPACE = re.compile(r"\s+")


def parameterise(message: str) -> str:
    """The message with each variable part replaced by its kind, as in `user <email> not found after <duration>`."""
    text = message[:CHARS_MAX]
    return _SPACE.sub(" ", _VALUE.sub(lambda found: f"<{found.lastgroup}>", text)).strip()


_GENERATED = re.compile(
    r"::h[0-9a-f]{16}\b"  # Rust's symbol hash
    r"|@?\b0x[0-9a-fA-F]{1,16}\b"  # an address
    r"|\$\$(?:EnhancerBy|FastClassBy)[A-Za-z]{1,32}\$\$[0-9a-f]{1,16}"  # Spring proxies
    r"|\.(?:isra|constprop|part|cold)(?:\.\d{1,4})?"  # gcc clones
    r"|(?:/0x)?(?<=Lambda\$)\d{1,9}(?:/[0-9a-fx]{1,20})?"  # JVM lambdas
)
_NUMBERED = re.compile(
    r"(?<=[$#])\d{1,9}|(?<=lambda[-_$])\d{1,9}|(?<=\bfunc)\d{1,9}(?:\.\d{1,9})*\b|(?<=closure#)\d{1,9}|(?<=Proxy)\d{1,9}\b"
)
_GENERATED_NAME = re.compile(r"(?<=_)(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{6,40}\b|(?<=_)\d{3,20}\b")


@lru_cache(NAMES_REMEMBERED_MAX)
def normalise_function(name: str) -> str:
    """A function's name without line numbers, addresses, and the counters that compilers give lambdas and generated code."""
    text = _GENERATED.sub("", name.replace("<locals>.", ""))
    text = _GENERATED_NAME.sub("", _NUMBERED.sub("", text))
    return "<anonymous>" if text in {"", "?", "anonymous", "<anonymous>", "(anonymous)", "anonymous fn", "anonymous function"} else text


_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]{1,15}:/{2,3}(?:[^/]{1,255}(?=/))?")
_VERSIONED = re.compile(r"[-@.]v?\d{1,6}(?:\.\d{1,6}){1,3}(?=$|[-./])")
_DIGEST = re.compile(r"(?<=[.-])(?=[0-9a-zA-Z]*\d)[0-9a-zA-Z]{6,40}(?=\.)")
_VOLATILE_FOLDER = re.compile(r"^(?:\d{6,20}|(?=.*\d)[0-9a-f]{7,64}|v?\d{1,6}(?:\.\d{1,6}){1,3})$")
PATH_PARTS_MAX = 3  # the folders above a package differ between a laptop, an image and a release folder


@lru_cache(NAMES_REMEMBERED_MAX)
def normalise_file(path: str) -> str:
    """A source file's path as two releases share it: its last parts, without hosts, versions, digests and query strings."""
    text = _SCHEME.sub("", path.replace("\\", "/")).split("?")[0].split("#")[0]
    parts = [part for part in text.split("/") if part not in {"", ".", "..", "~"}][-PATH_PARTS_MAX:]
    kept = [_DIGEST.sub("*", _VERSIONED.sub("", part)) for part in parts if not _VOLATILE_FOLDER.match(part)]
    return "/".join(kept)


def normalise_text(text: str, chars_max: int = CHARS_MAX) -> str:
    """What a person wrote, as it compares: lower case, one space, variable parts by their kind, no punctuation at the ends."""
    return parameterise(text[:chars_max]).lower().strip(" .!?…,;:-")
