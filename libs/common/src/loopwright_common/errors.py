"""The errors that services share, and what a bus consumer does with each.

LoopwrightError
├── Retryable        a later attempt may succeed: the message is given back with a growing delay
│   └── Unavailable  something we depend on does not answer
└── Permanent        no attempt can succeed: the message goes to the dead letters with this reason
    ├── Refused      a limit or a policy says no
    └── NotFound     the thing named does not exist

Anything else is a programmer's error: it crashes the handler, is logged with its traceback, and is tried again as Retryable until the
tries are used up.
"""

from __future__ import annotations

from datetime import timedelta


class LoopwrightError(Exception):
    """Says in one sentence what failed, with the thing, the value, the limit and the next step."""


class Retryable(LoopwrightError):
    """A later attempt may succeed; ``after`` is the least time to wait, where the cause says so."""

    def __init__(self, message: str, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class Unavailable(Retryable):
    """Something we depend on does not answer now."""


class Permanent(LoopwrightError):
    """No attempt can succeed with this input."""


class Refused(Permanent):
    """A limit or a policy says no; the message names it."""


class NotFound(Permanent):
    """The thing named does not exist."""
