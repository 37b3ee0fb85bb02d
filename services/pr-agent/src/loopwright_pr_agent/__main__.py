"""``python -m loopwright_pr_agent``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_pr_agent
from loopwright_pr_agent.app import create_app
from loopwright_pr_agent.settings import PrAgentSettings


def main() -> None:
    run("pr-agent", loopwright_pr_agent.__doc__ or "", PrAgentSettings, create_app)


if __name__ == "__main__":
    main()
