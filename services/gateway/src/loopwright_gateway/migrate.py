"""Brings the database's tables up to date: ``python -m loopwright_gateway.migrate [--wait SECONDS]``, or at start.

Revisions are in ``migrations/versions``; a test compares what they make with ``adapters.tables``. A database that is ahead of this
program, after a rollback, is left as it is: revisions only add, so the program before works on with it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from loopwright_common.settings import BadSetting, load
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from loopwright_gateway.settings import GatewaySettings

TRY_AGAIN_SECONDS = 2.0
log = structlog.get_logger()


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for revisions that ship inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Applies all revisions that are missing, in the connection's transaction."""
    config = configuration(connection)
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    ahead = set(MigrationContext.configure(connection).get_current_heads()) - known
    if ahead:
        log.warning("database_is_ahead", revisions=sorted(ahead), remedy="none: it works with this version too, and stays as it is")
        return
    command.upgrade(config, "head")


async def migrate(url: str, wait_seconds: float = 0.0) -> None:
    """Brings the database at ``url`` up to date. Tries for ``wait_seconds`` to reach it, then raises what the driver last said."""
    from loopwright_gateway.adapters.store import SqlStore

    deadline = time.monotonic() + wait_seconds
    store = SqlStore.open(url)
    try:
        while True:
            try:
                async with store.reading.connect():
                    break
            except (OSError, DBAPIError) as error:  # nobody listens, the name is not known yet, or the server is still starting
                if time.monotonic() >= deadline:
                    raise
                log.info("database_awaited", reason=f"{type(error).__name__}: {str(error)[:200]}")
            await asyncio.sleep(TRY_AGAIN_SECONDS)
        await store.migrate()
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loopwright_gateway.migrate", description="Brings the database's tables up to date.")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="how long to wait for the database; default: not at all")
    arguments = parser.parse_args()
    try:
        settings = load(GatewaySettings)
    except BadSetting as error:
        print(f"loopwright-gateway cannot migrate:\n{error}", file=sys.stderr)
        sys.exit(2)
    asyncio.run(migrate(settings.database_url.get_secret_value(), arguments.wait))


if __name__ == "__main__":
    main()
