"""The journal's version: made when empty, brought up when older, refused when newer.

Each revision is a file of SQL for each kind of database, under ``migrations/sql``. An empty database gets them
directly; an older one is brought up by Alembic, which is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import StoreError

REVISIONS = ("0001",)
"""Every revision, oldest first; the last one is what this Holdfast writes."""
CURRENT = REVISIONS[-1]
_MIGRATIONS = Path(__file__).with_name("migrations")
READ_VERSION = "SELECT version_num FROM alembic_version"


def check(version: str, where: str) -> bool:
    """Whether the journal is of the current version; False when it is older.

    Raises:
        StoreError: a newer Holdfast wrote it.
    """
    if version == CURRENT:
        return True
    if version in REVISIONS:
        return False
    raise StoreError(
        f"the journal at {where} was written by a newer Holdfast (its version is {version}, this one knows {CURRENT}). "
        "Upgrade Holdfast."
    )


def statements(dialect: str, revision: str) -> list[str]:
    """A revision's SQL for ``sqlite`` or ``postgresql``, one statement each."""
    text = (_MIGRATIONS / "sql" / f"{revision}.{dialect}.sql").read_text()
    found = [""]
    for part in text.split(";\n"):
        # What stands between two $$ is the body of a function, with semicolons of its own.
        found[-1] += part
        if found[-1].count("$$") % 2:
            found[-1] += ";\n"
        else:
            found.append("")
    return [statement for part in found if (statement := part.strip())]


def create(dialect: str, run: Callable[[str, Sequence[Any]], object]) -> None:
    """Make everything in an empty database, within the caller's transaction."""
    for revision in REVISIONS:
        for statement in statements(dialect, revision):
            run(statement, ())
    run("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)", ())
    run(f"INSERT INTO alembic_version (version_num) VALUES ('{CURRENT}')", ())  # noqa: S608


def upgrade(url: str) -> None:
    """Bring an older journal up to the current version with Alembic. ``url`` is SQLAlchemy's.

    Raises:
        StoreError: it failed; nothing was changed.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, CURRENT)
    except (SQLAlchemyError, CommandError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(
            f"the journal could not be brought up to version {CURRENT} ({reason}). Stop every node that uses it and "
            "try again; it was left as it was."
        ) from None
    finally:
        engine.dispose()
