"""``python -m loopwright_investigator``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_investigator
from loopwright_investigator.app import create_app
from loopwright_investigator.settings import InvestigatorSettings


def main() -> None:
    run("investigator", loopwright_investigator.__doc__ or "", InvestigatorSettings, create_app)


if __name__ == "__main__":
    main()
