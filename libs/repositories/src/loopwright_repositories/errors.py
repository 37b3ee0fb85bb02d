"""What can go wrong with a repository or its forge, and whether a retry helps.

RepositoryError                      (with RepositoryUnavailable also loopwright_common Retryable, with RepositoryRefused Permanent)
├── RepositoryUnavailable  Retryable   the remote does not answer, a lock is held, a time limit passed
│   └── ForgeUnavailable               the forge does not answer, or asks to come again later
└── RepositoryRefused      Permanent   no attempt can succeed with this input
    ├── HostileInput                   a path, revision or URL that is not one
    ├── UnknownRevision                nothing in the repository has that name
    ├── UnknownPath                    no such file at that revision
    ├── OutputTooLarge                 git said more than the caller allows
    ├── ManifestInvalid                .loopwright.yaml cannot be understood
    ├── git.GitFailed                  git ended with an exit code that was not expected
    ├── publishing.DiffDoesNotApply    the diff does not fit its base
    ├── publishing.BranchMoved         somebody else pushed to the branch
    ├── ForgeRefused                   the forge understood and said no
    │   └── ForgeConflict              the pull request is not as the caller expected
    └── ForgeNotFound                  the forge has no such thing
"""

from __future__ import annotations

from loopwright_common.errors import LoopwrightError, NotFound, Permanent, Refused, Unavailable


class RepositoryError(LoopwrightError):
    """Any failure of this package."""


class RepositoryUnavailable(RepositoryError, Unavailable):
    """A later attempt may succeed: the remote does not answer, a lock is held, or a time limit passed."""


class ForgeUnavailable(RepositoryUnavailable):
    """The forge does not answer, or asks to come again later."""


class RepositoryRefused(RepositoryError, Permanent):
    """No attempt can succeed with this input."""


class HostileInput(RepositoryRefused, Refused):
    """A path, revision or URL from outside that is not one."""


class UnknownRevision(RepositoryRefused, NotFound):
    """Nothing in the repository has that name, or more than one thing has."""


class UnknownPath(RepositoryRefused, NotFound):
    """There is no such file at that revision."""


class OutputTooLarge(RepositoryRefused, Refused):
    """Git said more than the caller allows."""


class ManifestInvalid(RepositoryRefused):
    """The repository's ``.loopwright.yaml`` cannot be understood; the message says which line or field."""


class ForgeRefused(RepositoryRefused, Refused):
    """The forge understood the request and said no."""


class ForgeConflict(ForgeRefused):
    """The pull request is not in the state that the caller expected: it moved, was closed, or does not merge."""


class ForgeNotFound(RepositoryRefused, NotFound):
    """The forge has no such repository, pull request or commit."""
