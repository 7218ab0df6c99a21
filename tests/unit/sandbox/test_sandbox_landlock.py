"""What Landlock is told: everything below a mount but what is hidden, and only rights that the kernel knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.sandbox import confine, landlock, procs, registry, seccomp
from holdfast.sandbox.base import Label, Mount, Spec

READ = confine.EXECUTE | confine.READ_FILE | confine.READ_DIR


@pytest.mark.parametrize(
    ("version", "files", "network", "scopes"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 3, 0), (5, 16, 3, 0), (6, 16, 3, 3), (7, 16, 3, 3)],
)
def test_all_rights_of_a_version_are_taken(version: int, files: int, network: int, scopes: int) -> None:
    assert confine.handled(version) == ((1 << files) - 1, network, scopes)


def test_what_is_hidden_is_granted_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for name in ("top.py", "a/x.py", "a/deep/.env", "a/deep/y.py", "b/z.py"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a/deep/.env")
    secret = str(tmp_path / "a/deep/.env")
    rules = dict(landlock._except(str(tmp_path), READ, {secret}))
    granted = {path for path, rights in rules.items() if rights == READ}
    assert granted == {str(tmp_path / name) for name in ("top.py", "a/x.py", "a/deep/y.py", "b")}
    assert all(rights == confine.READ_DIR for path, rights in rules.items() if path not in granted)
    assert not any(secret.startswith(f"{path}/") or path == secret for path in granted)


def test_without_anything_hidden_one_rule_does(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert landlock._except(str(tmp_path), READ, {"/elsewhere/.env"}) == [[str(tmp_path), READ]]


def test_mounts_are_where_their_sources_are(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "link").symlink_to("code")
    mounts = (
        Mount(source=tmp_path / "link", target=Path("/code")),
        Mount(source=tmp_path / "code", target=Path("/python"), mask=False),
    )
    moved = landlock.in_place(Spec(argv=("x",), label=Label(tenant="t"), home=tmp_path, mounts=mounts)).mounts
    assert [str(one.target) for one in moved] == [str(tmp_path / "code"), "/python"]


def test_the_outermost_closed_folder_is_covered(tmp_path: Path) -> None:
    (tmp_path / "open" / "closed" / "below").mkdir(parents=True)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "open" / "closed").chmod(0o700)
    found = landlock._closed(str(tmp_path / "open" / "closed" / "below"))
    assert not os.stat(found).st_mode & 0o001
    assert str(tmp_path / "open" / "closed").startswith(found)


def test_shared_namespaces_get_a_third_program() -> None:
    allowing, denying, sharing = seccomp.compile_for("x86_64")
    assert len({allowing, denying, sharing}) == 3
    assert len(sharing) % 8 == 0


def test_processes_are_found_by_their_mark_in_one_reading() -> None:
    none = procs.Process(0, 0)

    def entry(id: str) -> registry.Entry:
        return registry.Entry(id=id, level="process", label=Label(tenant="t"), node=none, outer=none)

    def child(id: str) -> subprocess.Popen[bytes]:
        code = "print('up', flush=True); input()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={"A": "1", registry.MARKER: id},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    with child("found-1") as first, child("found-2") as second, child("found-11") as other:
        for one in (first, second, other):
            assert one.stdout is not None
            one.stdout.readline()
        assert registry.search([entry("found-1"), entry("found-2"), entry("found-3")]) == {
            "found-1": [first.pid],
            "found-2": [second.pid],
            "found-3": [],
        }
        for one in (first, second, other):
            one.kill()
