"""``python -m loopwright_gateway``: settings -> app -> run."""

from __future__ import annotations

from loopwright_common.process import run

import loopwright_gateway
from loopwright_gateway.app import create_app
from loopwright_gateway.settings import GatewaySettings


def main() -> None:
    run("gateway", loopwright_gateway.__doc__ or "", GatewaySettings, create_app)


if __name__ == "__main__":
    main()
