"""Fixtures that every room may use: a PostgreSQL of the session's own, and a store of each kind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore

# The same examples each time, however slow the machine: a property that fails, fails for a reason.
settings.register_profile(
    "holdfast", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("holdfast")


class PostgresCluster:
    """A PostgreSQL server on a Unix socket in a folder of its own."""

    def __init__(self, binaries: Path, folder: Path, prefix: list[str]) -> None:
        self.binaries = binaries
        self.folder = folder
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.folder}&user=holdfast"

    def init(self) -> None:
        self._run("initdb", "-D", str(self.data), "-U", "holdfast", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *self._prefix,
                str(self.binaries / "postgres"),
                *("-D", str(self.data)),
                *("-k", str(self.folder)),
                *("-c", "listen_addresses="),
                *("-c", "max_connections=50"),
                *("-c", "shared_buffers=16MB"),
                # The tests stop servers, not machines.
                *("-c", "fsync=off"),
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # pg_isready is asked again until the server says so; it waits by itself for up to its time-out.
        for _ in range(600):
            if self._process.poll() is not None:
                break
            ready = subprocess.run(
                [str(self.binaries / "pg_isready"), "-h", str(self.folder), "-U", "holdfast", "-q", "-t", "5"],
                check=False,
            )
            if ready.returncode == 0:
                return
            with_timeout(self._process, 0.1)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """End the server at once, as a crash would for its clients (SIGQUIT), and wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
        self._process = None

    def create(self) -> str:
        """The URL of an empty place for a journal: a schema of its own, which costs less than a database."""
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{name}"')
        return f"{self.url('postgres')}&options=-csearch_path%3D{name}"

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [*self._prefix, str(self.binaries / program), *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr or done.stdout}")


def with_timeout(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process, but no longer than that."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def _new_cluster() -> Iterator[PostgresCluster]:
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'holdfast[postgres]'")
    # A Unix socket's path is limited to 107 bytes, so not below pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="hf-pg-"))
    prefix: list[str] = []
    if os.geteuid() == 0:
        # The server refuses to run as root.
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
        shutil.chown(folder, "postgres", "postgres")
    cluster = PostgresCluster(binaries, folder, prefix)
    try:
        cluster.init()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A PostgreSQL server for the whole session; make a database for each test with ``create()``."""
    yield from _new_cluster()


@pytest.fixture
def own_postgres() -> Iterator[PostgresCluster]:
    """A PostgreSQL server of one test, which may stop it."""
    yield from _new_cluster()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """What ``open_store`` takes: once for each kind of store."""
    if request.param == "sqlite":
        return "sqlite"
    cluster: PostgresCluster = request.getfixturevalue("postgres")
    return cluster.create()


@pytest.fixture
def opener(store_url: str, tmp_path: Path) -> Iterator[Callable[[], SqlStore]]:
    """Opens one more store on the same database each time that it is called; closes them all at the end."""
    opened: list[SqlStore] = []

    def open_one() -> SqlStore:
        opened.append(open_store(store_url, tmp_path / "home"))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Callable[[], SqlStore]) -> SqlStore:
    """An empty store."""
    return opener()
