"""The history of the schema, and how a database is brought to a point of it.

``HEAD`` is the newest revision; a test holds it equal to what the scripts say. Alembic
is only imported where something is to be done: most starts find nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import StoreUnavailable

HEAD = "0014"


def current(connection: sa.Connection) -> str | None:
    """The revision of a database; None if it is empty."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(
        sa.text("SELECT version_num FROM alembic_version")
    ).scalar()
    return revision


def upgrade(connection: sa.Connection, revision: str = HEAD) -> None:
    """Bring a database up to *revision*, inside the connection's transaction.

    Raises:
        StoreUnavailable: the database, or *revision*, is of a newer Acclimate.
    """
    found = current(connection)
    if found == revision:
        return
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    for named in (found, revision):
        if named is not None and named not in known:
            raise StoreUnavailable(
                f"the store has the schema {named}, which this version does not know; "
                "update Acclimate"
            )
    command.upgrade(config, revision)


def downgrade(connection: sa.Connection, revision: str) -> None:
    """Take a database back to *revision* (``base``: empty), inside the transaction.

    What only newer revisions can hold is lost.
    """
    from alembic import command  # noqa: PLC0415 - see above

    command.downgrade(_config(connection), revision)


def _config(connection: sa.Connection) -> Any:
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    # A percent sign in the path would be read as the beginning of an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
