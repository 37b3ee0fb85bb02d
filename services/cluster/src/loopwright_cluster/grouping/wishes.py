"""Whether a person's text asks for something, or how something is done, and tells of no failure.

Such a text names the very page and function that an exception of the same hour names, and is as like it as half of the complaints about
that are. Read in English; of other languages nothing is known, and nothing follows from that.
"""

from __future__ import annotations

import re

CHARS_MAX = 2_000

_ASKS = re.compile(
    r"\b(?:feature request|(?:would|it'd) be (?:nice|great|good|helpful|useful)"
    r"|please (?:add|allow|consider|delete|offer|provide|support)|add support"
    r"|should be (?:configurable|optional|possible)|(?:i|we)(?:'d| would) (?:like|love) (?:to|a|an)|we want to"
    r"|how (?:can|do) (?:i|one|we|you)|how to|where (?:can|do) (?:i|we)|is (?:there (?:a|any) way|it possible to)"
    r"|(?:can|could) (?:i|we) (?:get|have)|(?:can|could) you (?:please )?(?:add|allow|offer|provide|support))\b",
    re.IGNORECASE,
)
_SEEKS = re.compile(r"\b(?:cannot|can't|could not|couldn't|do not|don't) (?:figure out|find|know|see) (?:how|where)\b", re.IGNORECASE)
_FAILS = re.compile(
    r"\b(?:errors?|exceptions?|fail\w{0,5}|crash\w{0,3}|broken?|breaks|bugs?|wrong\w{0,2}|cannot|can ?not|unable|\w{2,6}n['’]t|not"
    r"|no longer|nothing|never|timeouts?|timed out|times out|hangs?|frozen|freezes|traceback|stack ?trace|[45]\d\d|slow\w{0,2}"
    r"|missing|lost|stuck|refused|rejected|denied|invalid|expired|empty|blank|corrupt\w{0,2}|duplicated?|twice|fix|outage|down|issues?|problems?)\b",
    re.IGNORECASE,
)


def only_asks(title: str, body: str) -> bool:
    """Whether the text asks for something and no word of it tells of a failure."""
    text = _SEEKS.sub(" ", f"{title}\n{body[:CHARS_MAX]}")
    return _ASKS.search(text) is not None and _FAILS.search(text) is None
