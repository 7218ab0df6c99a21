"""Secret files below a folder that is mounted for a boundary: found, so that they can be hidden there.

A mounted folder is the author's code; what hosts and tools leave in such folders (credentials, private keys, the
home of Holdfast itself) has no business inside.
"""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path

from holdfast.errors import IsolationError

FILES = (
    ".env",
    ".env.*",
    "*.env",
    ".envrc",
    ".git-credentials",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".my.cnf",
    ".htpasswd",
    ".claude.json",
    ".terraformrc",
    "*-service-account.json",
    "*service_account*.json",
    "application_default_credentials.json",
    "credentials.json",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.ppk",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "*.tfstate",
    "*.tfstate.backup",
)
"""Names of files that are hidden, as shell patterns, in any case of letters."""
FOLDERS = (".aws", ".azure", ".gnupg", ".kube", ".docker", ".ssh", ".holdfast", ".password-store")
"""Names of folders that are hidden."""
SAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist")
"""Not hidden: these hold names without values, and code reads them."""
MAX_ENTRIES = 200_000

_files = re.compile("|".join(fnmatch.translate(pattern) for pattern in FILES), re.IGNORECASE)


def secret_file(name: str) -> bool:
    """Whether a file of this name is hidden."""
    return name.lower() not in SAMPLES and _files.match(name) is not None


def find(root: Path, also: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Files and folders to hide below ``root``, as paths below it; ``also`` (Holdfast's home) is hidden wherever it is.

    Links are not followed: what they lead to is inside only when it was mounted itself, and is then found there.

    Raises:
        IsolationError: the folder cannot be read to the end, so what it holds is not known.
    """
    files: list[Path] = []
    folders: list[Path] = []
    hidden = None if also is None else os.path.realpath(also)
    pending = [str(root)]
    seen = 0
    while pending:
        here = pending.pop()
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            raise IsolationError(f"{here} is to be mounted but cannot be read: {error.strerror}") from None
        seen += len(entries)
        if seen > MAX_ENTRIES:
            raise IsolationError(
                f"{root} holds more than {MAX_ENTRIES} entries; mount a smaller folder, with the code alone"
            )
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name in FOLDERS or (hidden is not None and os.path.realpath(entry.path) == hidden):
                    folders.append(Path(entry.path))
                else:
                    pending.append(entry.path)
            elif secret_file(entry.name) and not entry.is_symlink():
                files.append(Path(entry.path))
    return files, folders
