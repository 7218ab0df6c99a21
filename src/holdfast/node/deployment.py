"""Deployments: an agent's code by content, pinned in the store and served from there to each incarnation."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import Store
from holdfast.node.describe import Description, choose, describe, imports
from holdfast.values import digest, sha256

MAX_FILES = 5000
MAX_BYTES = 64 << 20


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is pinned to."""

    target: str
    """``relative/file.py:Class``, below the deployment's root."""
    files: dict[str, str]
    """Relative path to SHA-256 of its bytes."""
    python: str
    dependencies: str
    """Digest over the installed distributions' names and versions."""

    def manifest(self) -> bytes:
        """Canonical bytes; their SHA-256 names the deployment."""
        return msgspec.json.encode(self, order="sorted")


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment ready to be kept."""

    digest: str
    deployment: Deployment
    blobs: dict[str, bytes]
    description: Description
    workflow: str


def pin(target: str, workflow: str = "", *, cwd: Path | None = None) -> Pinned:
    """Collect the code behind ``path/to/file.py:Class`` or ``package.module:Class``.

    From a file: it and all modules beside it that it imports, directly or not. From a package: the whole package.

    Raises:
        UsageError: there is no such file, module, class or workflow; or it is too large.
    """
    place, colon, class_name = target.rpartition(":")
    if not colon or not place or not class_name.isidentifier():
        raise UsageError(f"{target!r} is no target; write path/to/file.py:Class or package.module:Class")
    root, file = _locate(place, cwd or Path.cwd())
    sources = _collect(root, file)
    relative = file.relative_to(root).as_posix()
    description = describe(sources[relative], class_name, place)
    chosen = choose(description, workflow, target)
    hashes = {name: sha256(data) for name, data in sorted(sources.items())}
    deployment = Deployment(
        target=f"{relative}:{class_name}",
        files=hashes,
        python="{}.{}".format(*sys.version_info[:2]),
        dependencies=dependency_digest(),
    )
    manifest = deployment.manifest()
    name = sha256(manifest)
    blobs = {hashes[path]: data for path, data in sources.items()} | {name: manifest}
    return Pinned(digest=name, deployment=deployment, blobs=blobs, description=description, workflow=chosen)


def load(store: Store, name: str) -> Deployment:
    """A pinned deployment's manifest.

    Raises:
        StoreError: the store does not hold it, or holds other bytes under its name.
    """
    return msgspec.json.decode(_blob(store, name, f"deployment {name[:12]}"), type=Deployment)


def child(store: Store, parent: Deployment, target: str, workflow: str) -> tuple[Pinned, Deployment]:
    """The deployment of a child run: the same files under another target (``module:Class``).

    Raises:
        UsageError: the deployment has no such module, class or workflow.
    """
    module, _, class_name = target.rpartition(":")
    stem = module[: -len(".py")] if module.endswith(".py") else module.replace(".", "/")
    path = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in parent.files), None)
    if path is None:
        raise UsageError(
            f"{target}: the deployment has no module {module}; spawn a class that the workflow's file imports"
        )
    description = describe(_blob(store, parent.files[path], path), class_name, path)
    deployment = msgspec.structs.replace(parent, target=f"{path}:{class_name}")
    manifest = deployment.manifest()
    name = sha256(manifest)
    pinned = Pinned(
        digest=name,
        deployment=deployment,
        blobs={name: manifest},
        description=description,
        workflow=choose(description, workflow, target),
    )
    return pinned, deployment


def materialise(store: Store, name: str, home: Path) -> tuple[Path, Deployment]:
    """The folder that holds exactly the pinned files, made from the store when it is not there or was changed.

    Raises:
        StoreError: the store lacks a file, or the folder cannot be written.
    """
    deployment = load(store, name)
    tree = digest(*(part for item in sorted(deployment.files.items()) for part in item))
    folder = home / "deployments" / tree[:32]
    if _intact(folder, deployment):
        return folder, deployment
    try:
        folder.parent.mkdir(mode=0o755, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        for path, sha in deployment.files.items():
            place = fresh / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_blob(store, sha, path))
            place.chmod(0o444)
        for inner, folders, _ in os.walk(fresh):
            Path(inner).chmod(0o755)
            del folders
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:
            # Another node of this home was quicker; what it made is checked like any other.
            shutil.rmtree(fresh, ignore_errors=True)
            if not _intact(folder, deployment):
                raise
    except OSError as error:
        raise StoreError(
            f"cannot lay out the code in {folder.parent}: {error.strerror}; check space and rights"
        ) from None
    return folder, deployment


@functools.cache
def dependency_digest() -> str:
    """Digest over what is installed beside the agent's code: the names of all ``dist-info`` folders on the path.

    Those names hold each distribution's name and version (PEP 376), and a listing costs a hundredth of reading them.
    """
    found: set[str] = set()
    for entry in sys.path:
        try:
            found.update(
                name.lower() for name in os.listdir(entry or ".") if name.endswith((".dist-info", ".egg-info"))
            )
        except OSError:
            continue
    return digest(*sorted(found))


def _blob(store: Store, sha: str, what: str) -> bytes:
    data = store.blob(sha)
    if data is None:
        raise StoreError(f"the store does not hold {what}; restore the database from the backup it belongs to")
    if sha256(data) != sha:
        raise StoreError(f"the store's copy of {what} was changed; restore the database from a backup")
    return data


def _intact(folder: Path, deployment: Deployment) -> bool:
    try:
        found = {
            path.relative_to(folder).as_posix(): sha256(path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file()
        }
    except OSError:
        return False
    return found == deployment.files


def _locate(place: str, cwd: Path) -> tuple[Path, Path]:
    """Root (what goes on ``sys.path``) and file of a target."""
    if place.endswith(".py") or "/" in place:
        file = (cwd / place).resolve()
        if not file.is_file():
            raise UsageError(f"there is no file {place}; give the path from {cwd}")
        root = file.parent
        while (root / "__init__.py").is_file() and root.parent != root:
            root = root.parent
        return root, file
    stem = Path(*place.split("."))
    for entry in [str(cwd), *sys.path]:
        base = Path(entry or cwd).resolve()
        for candidate in (base / stem.with_suffix(".py"), base / stem / "__init__.py"):
            if candidate.is_file():
                return base, candidate
    raise UsageError(f"there is no module {place} on the path; give path/to/file.py:Class or install the package")


def _collect(root: Path, file: Path) -> dict[str, bytes]:
    sources: dict[str, bytes] = {}
    total = 0
    for path in _closure(root, file):
        relative = path.relative_to(root).as_posix()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        sources[relative] = data
        total += len(data)
        if total > MAX_BYTES or len(sources) > MAX_FILES:
            raise UsageError(
                f"the code around {file} is more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB; move it apart"
            )
    return sources


def _closure(root: Path, file: Path) -> Iterator[Path]:
    """The file and every module below ``root`` that it imports, directly or not; packages whole."""
    seen: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        if path.suffix != ".py":
            continue
        package = ".".join(path.parent.relative_to(root).parts)
        try:
            names = imports(path.read_bytes(), package)
        except (SyntaxError, ValueError, OSError):
            continue
        for name in sorted(names):
            todo.extend(_resolve(root, name))
        top = root / path.relative_to(root).parts[0]
        if top.is_dir() and (top / "__init__.py").is_file():
            todo.extend(_package(top))


def _resolve(root: Path, name: str) -> list[Path]:
    parts = name.split(".")
    found: list[Path] = []
    for end in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:end])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                found.append(candidate.resolve() if not candidate.is_symlink() else candidate)
    return [path for path in found if path.is_relative_to(root)]


def _package(folder: Path) -> list[Path]:
    skip = {"__pycache__", ".git", "node_modules"}
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not skip & set(path.parts) and not path.name.startswith(".")
    ]
