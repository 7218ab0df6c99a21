"""What comes out of a workspace: plain files below it, whatever the inside made or makes meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import PayloadError, StoreError
from holdfast.sandbox import collector
from holdfast.sandbox.collector import Bounds, Collected, FolderBlobs, collect

SECRET = b"a secret of the host's"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    return folder


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def taken(
    workspace: Path, blobs: collector.Blobs, bounds: Bounds = collector.BOUNDS, tenant: str = "acme"
) -> Collected:
    fd = collector.open_workspace(workspace)
    try:
        return collect(fd, blobs, tenant, bounds)
    finally:
        os.close(fd)


def test_files_come_out_with_their_bytes_and_digests(workspace: Path, blobs: FolderBlobs) -> None:
    (workspace / "a" / "b").mkdir(parents=True)
    (workspace / "a" / "b" / "report.txt").write_bytes(b"report")
    (workspace / "tool").write_bytes(b"tool")
    (workspace / "tool").chmod(0o755)
    found = taken(workspace, blobs)
    assert [(one.path, one.size, one.executable) for one in found.artefacts] == [
        ("a/b/report.txt", 6, False),
        ("tool", 4, True),
    ]
    assert found.refused == ()
    for one, data in zip(found.artefacts, (b"report", b"tool"), strict=True):
        assert one.digest == hashlib.sha256(data).hexdigest()
        kept = blobs.path("acme", one.digest)
        assert kept.read_bytes() == data
        assert kept.stat().st_mode & 0o7777 == 0o600


def test_tenants_do_not_share_bytes(workspace: Path, blobs: FolderBlobs) -> None:
    (workspace / "same").write_bytes(b"same")
    [one] = taken(workspace, blobs, tenant="a").artefacts
    assert blobs.path("a", one.digest).exists()
    assert not blobs.path("../a", one.digest).exists()
    assert not blobs.path("b", one.digest).exists()


def _link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "secret")


def _link_inside(path: Path) -> None:
    (path.parent / "target").write_bytes(b"plain")
    path.symlink_to("target")


def _hard_link(path: Path) -> None:
    os.link(path.parent.parent / "secret", path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _mode(bits: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"x")
        path.chmod(bits)

    return make


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 << 20)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_link, "symbolic link"),
        (_link_inside, "symbolic link"),
        (_hard_link, "2 names"),
        (lambda path: os.mkfifo(path), "fifo"),
        (_socket, "socket"),
        (_mode(0o4755), "setuid"),
        (_mode(0o2755), "setgid"),
        (_sparse, "sparse"),
    ],
)
def test_what_is_no_plain_file_stays(
    workspace: Path, blobs: FolderBlobs, make: Callable[[Path], None], reason: str
) -> None:
    make(workspace / "odd")
    found = taken(workspace, blobs)
    assert "odd" not in [one.path for one in found.artefacts]
    [refused] = found.refused
    assert refused.path == "odd"
    assert reason in refused.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device files")
def test_devices_stay(workspace: Path, blobs: FolderBlobs) -> None:
    try:
        os.mknod(workspace / "zero", 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("device files cannot be made here")
    found = taken(workspace, blobs)
    assert found.artefacts == ()
    assert "character device" in found.refused[0].reason


def test_a_folder_behind_a_link_is_not_looked_into(workspace: Path, blobs: FolderBlobs) -> None:
    (workspace / "up").symlink_to("..")
    (workspace / "proc").symlink_to("/proc/self/root")
    found = taken(workspace, blobs)
    assert found.artefacts == ()
    assert [one.path for one in found.refused] == ["proc", "up"]


@pytest.mark.parametrize("path", [b"../secret", b"/etc/passwd", b"link/secret", b"link", b"proc/self/root"])
def test_no_path_leads_out(workspace: Path, path: bytes) -> None:
    (workspace / "link").symlink_to("..")
    (workspace / "proc").symlink_to("/proc")
    fd = collector.open_workspace(workspace)
    try:
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on how it leads out
            os.close(collector.open_beneath(fd, path, os.O_RDONLY))
    finally:
        os.close(fd)


def test_plain_opening_would_have_followed(workspace: Path) -> None:
    (workspace / "link").symlink_to("..")
    assert (workspace / "link" / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"bell\x07", "right\u202eleft".encode()])
def test_names_that_are_no_text_stay(workspace: Path, blobs: FolderBlobs, name: bytes) -> None:
    with open(os.path.join(os.fsencode(workspace), name), "wb") as file:
        file.write(b"x")
    found = taken(workspace, blobs)
    assert found.artefacts == ()
    assert found.refused[0].path.isprintable()
    assert "name" in found.refused[0].reason


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        (Bounds(entries=3), "more than 3 entries"),
        (Bounds(file_size=99), "larger than 99 bytes"),
        (Bounds(total_size=399), "larger than 399 bytes together"),
    ],
)
def test_too_much_is_an_error(workspace: Path, blobs: FolderBlobs, bounds: Bounds, match: str) -> None:
    for number in range(4):
        (workspace / f"file{number}").write_bytes(bytes([number]) * 100)
    with pytest.raises(PayloadError, match=match):
        taken(workspace, blobs, bounds)
    assert len(taken(workspace, blobs, Bounds(entries=4, file_size=100, total_size=400)).artefacts) == 4


def test_an_error_leaves_nothing_half_stored(workspace: Path, blobs: FolderBlobs, tmp_path: Path) -> None:
    (workspace / "big").write_bytes(b"x" * 100)
    with pytest.raises(PayloadError):
        taken(workspace, blobs, Bounds(file_size=99))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_deep_tree_is_left_where_it_is_too_deep(workspace: Path, blobs: FolderBlobs) -> None:
    here = workspace
    for _ in range(6):
        here = here / "d"
        here.mkdir()
        (here / "file").write_bytes(b"x")
    found = taken(workspace, blobs, Bounds(depth=3))
    assert {one.path for one in found.artefacts} == {"d/file", "d/d/file"}
    assert any("too deep" in one.reason for one in found.refused)


def test_a_store_that_cannot_be_written_says_so(workspace: Path, tmp_path: Path) -> None:
    (workspace / "file").write_bytes(b"x")
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be stored"):
        taken(workspace, FolderBlobs(tmp_path / "blocked"))


class Memory:
    """A store that keeps what it was given, to be looked at."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def put(self, tenant: str, chunks: Iterator[bytes]) -> str:
        data = b"".join(chunks)
        digest = hashlib.sha256(data).hexdigest()
        self.kept[digest] = data
        return digest


def test_swapping_names_meanwhile_brings_nothing_out(workspace: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    plain, link, name = (workspace / one for one in ("plain", "link", "name"))
    plain.mkdir()
    (plain / "file").write_bytes(b"plain")
    link.symlink_to(outside)
    stop = threading.Event()
    swaps = [0]

    def swap() -> None:
        while not stop.is_set():
            for one in (plain, link):
                with contextlib.suppress(OSError):
                    one.rename(name)
                    name.rename(one)
                    swaps[0] += 1

    attacker = threading.Thread(target=swap)
    attacker.start()
    store = Memory()
    try:
        rounds = 0
        while rounds < 300 or swaps[0] < 50:
            taken(workspace, store)
            rounds += 1
    finally:
        stop.set()
        attacker.join()
    assert set(store.kept.values()) <= {b"plain"}


NAMES = st.sampled_from(["a", "b", "c", "d"])
ENTRIES = st.recursive(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(["..", "/", "/etc/passwd", "a", "../secret", "."]),
    ),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


def _build(path: Path, tree: object, files: dict[str, bytes], links: set[str], at: str = "") -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        files[at] = tree
    elif isinstance(tree, str):
        path.symlink_to(tree)
        links.add(at)
    elif isinstance(tree, dict):
        path.mkdir()
        for name, inner in tree.items():
            _build(path / name, inner, files, links, f"{at}/{name}".lstrip("/"))


@given(tree=st.dictionaries(NAMES, ENTRIES, max_size=4))
def test_exactly_the_plain_files_come_out(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]) -> None:
    folder = tmp_path_factory.mktemp("tree") / "workspace"
    files: dict[str, bytes] = {}
    links: set[str] = set()
    _build(folder, tree, files, links)
    store = Memory()
    found = taken(folder, store)
    assert {one.path: store.kept[one.digest] for one in found.artefacts} == files
    assert {one.path for one in found.refused} == links
