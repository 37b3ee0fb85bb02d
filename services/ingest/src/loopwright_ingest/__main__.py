"""``python -m loopwright_ingest``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_ingest
from loopwright_ingest.app import create_app
from loopwright_ingest.settings import IngestSettings


def main() -> None:
    run("ingest", loopwright_ingest.__doc__ or "", IngestSettings, create_app)


if __name__ == "__main__":
    main()
