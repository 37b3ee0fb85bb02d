"""``python -m loopwright_measure``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_measure
from loopwright_measure.app import create_app
from loopwright_measure.settings import MeasureSettings


def main() -> None:
    run("measure", loopwright_measure.__doc__ or "", MeasureSettings, create_app)


if __name__ == "__main__":
    main()
