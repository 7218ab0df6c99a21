"""Finding and opening a journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import ConfigError, StoreError
from holdfast.journal.payloads import Keyring

if TYPE_CHECKING:
    from holdfast.journal.sqlstore import SqlStore

DATABASE = "holdfast.db"
"""Name of the journal's file within a home."""


def open_store(url: str, home: Path) -> SqlStore:
    """Open the journal that ``[store] url`` names: ``sqlite`` (in the home) or ``postgresql://…``.

    Makes the home, readable for its owner only, and the journal where they are missing.

    Raises:
        StoreError: the home or the database cannot be used; says the cure.
        ConfigError: the URL is of another kind.
    """
    home = home.absolute()
    if url in ("sqlite", ""):
        make_home(home)
        from holdfast.journal.sqlite import SqliteStore

        return SqliteStore(home / DATABASE, Keyring.of(home))
    if url.startswith(("postgresql://", "postgres://")):
        make_home(home)
        from holdfast.journal.postgres import PostgresStore

        return PostgresStore(url, Keyring.of(home))
    raise ConfigError(f'[store] url = {url.split(":", 1)[0]!r}… is not known; use "sqlite" or "postgresql://…".')


def make_home(home: Path) -> None:
    """Make the home's folder, for its owner only, when it is missing.

    Raises:
        StoreError: it cannot be made, or is not a folder.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(f"{home} is a file, not a folder. Name another home with HOLDFAST_HOME.") from None
    except NotADirectoryError:
        raise StoreError(f"{home} stands below a file. Name another home with HOLDFAST_HOME.") from None
    except OSError as error:
        raise StoreError(
            f"the home {home} cannot be made ({error.strerror}). Make its parent writable, or name another home with "
            "HOLDFAST_HOME."
        ) from None
