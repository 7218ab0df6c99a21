"""Who is known to the node, and how they stand now: read again when the settings change, while runs are under way."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast import config
from holdfast.config import PrincipalSettings, Settings
from holdfast.errors import ConfigError
from holdfast.log import Log

NOBODY = PrincipalSettings()
log = Log(__name__)


class People:
    """The ``[principals]`` of the settings. A file that cannot be read leaves what was known; the log says so."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.file
        self._known: Mapping[str, PrincipalSettings] = settings.principals
        self._seen = self._stamp()

    def of(self, name: str) -> PrincipalSettings:
        """What is known of a principal, or of an agent (``agent:NAME``)."""
        stamp = self._stamp()
        if stamp != self._seen and self._file is not None:
            self._seen = stamp
            try:
                self._known = config.load(cwd=self._file.parent).principals
            except ConfigError as error:
                log.warning("settings not read again", reason=str(error))
        return self._known.get(name, NOBODY)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            found = None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else (0, 0, 0)
