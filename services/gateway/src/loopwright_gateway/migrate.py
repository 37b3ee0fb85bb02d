"""Brings the database's tables up to date: ``python -m loopwright_gateway.migrate``, or at start.

Revisions are in ``migrations/versions``; a test compares what they make with ``adapters.tables``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from loopwright_common.settings import BadSetting, load
from sqlalchemy.engine import Connection

from loopwright_gateway.settings import GatewaySettings


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for revisions that ship inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Applies all revisions that are missing, in the connection's transaction."""
    command.upgrade(configuration(connection), "head")


async def _main(url: str) -> None:
    from loopwright_gateway.adapters.store import SqlStore

    store = SqlStore.open(url)
    try:
        await store.migrate()
    finally:
        await store.close()


def main() -> None:
    try:
        settings = load(GatewaySettings)
    except BadSetting as error:
        print(f"loopwright-gateway cannot migrate:\n{error}", file=sys.stderr)
        sys.exit(2)
    asyncio.run(_main(settings.database_url.get_secret_value()))


if __name__ == "__main__":
    main()
