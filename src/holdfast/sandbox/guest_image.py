"""What a microVM boots: the host's kernel for virtual machines, and read-only images of the host's own Python.

The first image is an archive that the kernel unpacks (``initramfs``, cpio in its "newc" form: kernel documentation,
``driver-api/early-userspace/buffer-format``): the interpreter with what it needs to start, a few programs, drivers and
:mod:`holdfast.sandbox.guest_init`. Folders of the interpreter are ext4 images beside it. All are made once, named by
what they are made of, and shared by all guests. What belongs to one run alone is a small archive of its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import guest_init
from holdfast.sandbox.base import Mount
from holdfast.sandbox.interpreter import interpreter_mounts

KERNELS = Path("/boot")
MODULES = Path("/lib/modules")
DRIVERS = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console")
"""Kernel modules in the order in which they are loaded; one that is built in is left out."""
PROGRAMS = (
    "sh",
    "true",
    "false",
    "cat",
    "ls",
    "id",
    "env",
    "sleep",
    "echo",
    "mkdir",
    "rm",
    "cp",
    "mv",
    "uname",
    "kill",
)
"""Programs that a guest has beside Python, where the host has them."""
KEPT_SECONDS = 7 * 86_400
"""How long an image is kept that no node used."""
MAX_RUN = 256 << 20
"""Bytes that one run's own mounts may hold."""
_LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2"),
    *("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1"),
)
"""Libraries of the host's that packages built for any Linux may rely on (PEP 599), and what those need."""
_START = ("encodings", "collections", "ctypes", "json", "importlib", "re", "lib-dynload")
"""Folders of the standard library that the guest's first process needs before the images are there."""
_INSTALL = "apt install qemu-system-x86 linux-image-cloud-amd64 (arm64: qemu-system-arm linux-image-cloud-arm64)"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What every guest of this host boots."""

    kernel: Path
    initrd: Path
    folders: tuple[tuple[Path, str], ...]
    """ext4 image and where it is mounted."""


@functools.cache
def image() -> Image:
    """The images for this interpreter, made when they are missing. Blocking: the first time for some seconds.

    Raises:
        IsolationError: there is no kernel, no mke2fs, or no room; says what to do.
    """
    kernel, version = find_kernel()
    folder = cache_folder()
    folders = tuple((_ext4(folder, source), str(target)) for source, target in _folders())
    made = Image(kernel=kernel, initrd=_initrd(folder, version), folders=folders)
    _sweep(folder, {made.initrd, *(path for path, _ in folders)})
    return made


def find_kernel() -> tuple[Path, str]:
    """The newest kernel for virtual machines, else the newest at all, and its version.

    Raises:
        IsolationError: there is none with modules.
    """
    found = []
    for path in KERNELS.glob("vmlinuz-*"):
        version = path.name.removeprefix("vmlinuz-")
        if (MODULES / version).is_dir() and os.access(path, os.R_OK):
            numbers = [int(part) for part in re.findall(r"\d+", version)]
            found.append(("cloud" in version, numbers, path, version))
    if not found:
        raise IsolationError(f"level microvm needs a kernel to boot, in {KERNELS} with its modules; {_INSTALL}")
    return max(found)[2:]


def cache_folder() -> Path:
    """Where images are kept: the host's cache as root, the user's otherwise."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path("/var/cache") if os.geteuid() == 0 else user) / "holdfast" / "microvm"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise IsolationError(f"the images of microVMs cannot be kept in {folder}: {error.strerror}") from None
    return folder


def _sweep(folder: Path, used: set[Path]) -> None:
    """Remove what nobody used for long. A guest that runs keeps its images: they are open."""
    now = time.time()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path in used:
                os.utime(path)
            elif now - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def _folders() -> list[tuple[Path, Path]]:
    """Folders of the interpreter, from outside to inside: source and target."""
    found = {mount.target: mount.source for mount in interpreter_mounts()}
    stdlib = Path(sysconfig.get_path("stdlib"))
    debian = Path("/usr/lib/python3/dist-packages")
    for path in (stdlib, debian) if stdlib.is_relative_to("/usr") else (stdlib,):
        if path.is_dir() and not any(path.is_relative_to(target) for target in found):
            found[path] = path
    return [(found[target], target) for target in sorted(found)]


def _ext4(folder: Path, source: Path) -> Path:
    files = [path for path in sorted(source.rglob("*")) if not path.is_symlink()]
    stats = [path.lstat() for path in files]
    told = "\n".join(f"{path} {one.st_size} {one.st_mtime_ns}" for path, one in zip(files, stats, strict=True))
    target = folder / f"{hashlib.sha256(f'1 {source} {told}'.encode()).hexdigest()[:24]}.ext4"
    if target.exists():
        return target
    program = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise IsolationError("level microvm makes its images with mke2fs; apt install e2fsprogs")
    inodes = len(files) + 4096
    blocks = sum(-(-one.st_size // 4096) for one in stats) + inodes
    size = int(blocks * 4096 * 1.1) + (16 << 20)
    partial = folder / f".{target.name}.{os.getpid()}"
    command = [program, "-q", "-F", "-t", "ext4", "-d", str(source), "-b", "4096", "-N", str(inodes), "-m", "0"]
    command += ["-O", "^has_journal,^resize_inode", str(partial), f"{size // 1024}k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise IsolationError(f"an image of {source} cannot be made ({done.stderr.strip()[-200:]}); is {folder} full?")
    partial.chmod(0o444)
    partial.replace(target)
    return target


def _initrd(folder: Path, version: str) -> Path:
    programs = {name: found for name in PROGRAMS if (found := shutil.which(name, path="/usr/bin:/bin")) is not None}
    modules = [module for name in DRIVERS if (module := _module(version, name)) is not None]
    interpreter = os.path.realpath(sys.executable)
    sources = [interpreter, guest_init.__file__, *programs.values(), *map(str, modules)]
    told = [f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}" for path in sources]
    target = folder / f"{hashlib.sha256(f'4 {version} {told}'.encode()).hexdigest()[:24]}.cpio"
    if target.exists():
        return target
    partial = folder / f".{target.name}.{os.getpid()}"
    with partial.open("wb") as file:
        archive = Archive(file)
        for name in ("proc", "sys", "dev", "tmp", "run", "workspace", "etc", "code"):
            archive.folder(f"/{name}")
        for name in ("bin", "sbin", "lib", "lib64"):
            archive.folder(f"/usr/{name}")
            archive.link(f"/{name}", f"usr/{name}")
        archive.file("/etc/passwd", b"agent:x:1000:1000:agent:/workspace:/bin/sh\n", 0o644)
        archive.file("/etc/group", b"agent:x:1000:\n", 0o644)
        archive.file("/etc/hosts", b"127.0.0.1 localhost sandbox\n", 0o644)
        stdlib = Path(sysconfig.get_path("stdlib"))
        extensions = list((stdlib / "lib-dynload").glob("*.so"))
        for library in sorted(_libraries([interpreter, *programs.values(), *map(str, extensions)])):
            archive.copy(library, Path(library))
        for name, program in programs.items():
            archive.copy(f"/usr/bin/{name}", Path(program))
        archive.copy(interpreter, Path(interpreter))
        # Compiled modules too, which are many times faster to load where the guest runs in software.
        wanted = [
            *stdlib.glob("*.py"),
            *stdlib.glob(f"__pycache__/*.{sys.implementation.cache_tag}.pyc"),
            *(path for name in _START for path in (stdlib / name).rglob("*")),
        ]
        for path in sorted(wanted):
            if path.is_file():
                archive.copy(str(path), path)
        for module in modules:
            archive.copy(f"/modules/{module.name}", module)
        archive.file("/modules/order", "\n".join(f"/modules/{path.name}" for path in modules).encode(), 0o644)
        archive.file("/init", f"#!{interpreter} -IS\n".encode() + Path(guest_init.__file__).read_bytes(), 0o755)
        archive.end()
    partial.chmod(0o444)
    partial.replace(target)
    return target


def _module(version: str, name: str) -> Path | None:
    found = [
        path for path in (MODULES / version / "kernel").rglob("virtio*.ko*") if path.name.partition(".")[0] == name
    ]
    if found and found[0].suffix != ".ko":
        raise IsolationError(f"the modules of kernel {version} are compressed; install linux-image-cloud of Debian 12")
    return found[0] if found else None


def _libraries(programs: list[str]) -> set[str]:
    """Shared libraries that programs load, by the path under which the loader finds them."""
    found: set[str] = set()
    for program in programs:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        found |= set(re.findall(r"(/\S+) \(0x", said))
    said = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    for name in _LIBRARIES:
        found |= set(re.findall(rf"^\s*{re.escape(name)} .*x86-64.*=> (/\S+)", said, re.MULTILINE)[:1])
    return {path if not path.startswith(("/lib", "/bin")) else f"/usr{path}" for path in found}


class Archive:
    """Writes a cpio archive. Everything in it belongs to root, and nothing is setuid."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._names: set[str] = set()

    def folder(self, path: str) -> None:
        """A folder, and those above it."""
        if path not in ("", "/") and path not in self._names:
            self.folder(os.path.dirname(path))
            self._entry(path, 0o040755, b"")

    def file(self, path: str, data: bytes, mode: int, mtime: int = 0) -> None:
        """A plain file."""
        if path not in self._names:
            self.folder(os.path.dirname(path))
            self._entry(path, 0o100000 | mode & 0o777, data, mtime)

    def copy(self, path: str, source: Path) -> None:
        """A file of the host's, whatever links lead to it."""
        real = source.resolve()
        status = real.stat()
        self.file(path, real.read_bytes(), 0o755 if status.st_mode & 0o100 else 0o644, int(status.st_mtime))

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._entry(path, 0o120777, target.encode())

    def end(self) -> None:
        """Close the archive."""
        self._entry("/TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, data: bytes, mtime: int = 0) -> None:
        self._names.add(path)
        name = path.lstrip("/").encode() + b"\0"
        fields = (len(self._names), mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._file.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))


def write_run(path: Path, todo: dict[str, Any], mounts: tuple[Mount, ...], hidden: frozenset[str]) -> None:
    """Write what belongs to one run: what it is to do, and the files of its mounts. ``hidden``: paths that look empty.

    Raises:
        IsolationError: a mount is to be writable, or the mounts hold too much.
    """
    files: list[tuple[str, int, str, Path | None]] = []
    total = 0
    for mount in mounts:
        if mount.writable:
            raise IsolationError("level microvm has no writable mounts: files leave it through the channel alone")
        for source, target in _walk(mount):
            if source.is_symlink():
                files.append((target, -1, os.readlink(source), None))
            elif source.is_dir():
                files.append((target, -2, "", None))
            elif source.is_file():
                length = 0 if _below(target, hidden) else source.stat().st_size
                total += length
                files.append((target, length, "x" if os.access(source, os.X_OK) else "", source if length else None))
    if total > MAX_RUN:
        raise IsolationError(f"a run's own files hold {total} bytes; level microvm takes {MAX_RUN} at most")
    with path.open("wb") as file:
        index = [(target, size, word) for target, size, word, _ in files]
        file.write(json.dumps({"todo": todo, "files": index}).encode() + b"\n")
        for _, size, _, held in files:
            if held is not None:
                data = held.read_bytes()[:size]
                file.write(data + bytes(size - len(data)))
        file.write(bytes(-file.tell() % 4096))
    path.chmod(0o444)


def _walk(mount: Mount) -> Iterator[tuple[Path, str]]:
    yield mount.source, str(mount.target)
    if mount.source.is_dir():
        for path in sorted(mount.source.rglob("*")):
            yield path, str(mount.target / path.relative_to(mount.source))


def _below(path: str, hidden: frozenset[str]) -> bool:
    return any(path == one or path.startswith(one + "/") for one in hidden)
