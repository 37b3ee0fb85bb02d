"""``python -m loopwright_cluster``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_cluster
from loopwright_cluster.app import create_app
from loopwright_cluster.settings import ClusterSettings


def main() -> None:
    run("cluster", loopwright_cluster.__doc__ or "", ClusterSettings, create_app)


if __name__ == "__main__":
    main()
