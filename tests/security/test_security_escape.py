"""Attacks from inside: none works at the closed levels, and each is shown to work where there is no boundary."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.sandbox import syscalls

HERE = Path(__file__).parent
RUNNER = HERE / "escape_runner.py"
ABSENT = ("ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ENOENT", "ENODEV", "ENXIO")
"""How a kernel or machine says that it does not have what is attacked."""
CLOSED = ("namespace", "container", "gvisor")
"""Levels at which nothing is open."""
KEPT = ("device:", "sysctl:")
"""Attacks on what a container's own device rules and read-only mounts may keep from its root."""
WITHHELD = ("EPERM", "EACCES", "EROFS")
"""How a container says that its own walls are closer than ours."""


LEVELS = ("process", "landlock", *CLOSED)
pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the attacks need namespaces of their own, which need root"),
    pytest.mark.timeout(600),
]


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_probes = _load(HERE / "escape_probes.py")
_probes.add_syscalls(sorted(syscalls.DENIED | {"clone3", "openat2"}))
NAMES = tuple(_probes.PROBES)
_weaker = _load(HERE / "escape_weaker.py")
OPENED = {
    "a network of its own": {"same_network_namespace", "host_loopback_tcp", "host_loopback_udp", "metadata_service"},
    "IPC of its own": {"same_ipc_namespace"},
    "a host name of its own": {"host_name"},
    "a read-only root": {"write_root"},
    "a filter": {"no_filter", "syscall:keyctl", "syscall:unshare"},
    "hidden files": {"secret:.env", "secret:.ssh/id_ed25519"},
    "a uid of its own": {"user_is_root"},
}
"""What is left out of the namespace level to attacks that work then."""


def _environment() -> dict[str, str]:
    kinds = ("mnt", "pid", "net", "user", "ipc")
    inodes = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}
    return {
        "PATH": os.environ["PATH"],
        "HOST_NAMESPACES": json.dumps(inodes),
        "NODE_TOKEN": "the-nodes-own-token",
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each attack came to: level to probe to answer."""
    world = tmp_path_factory.mktemp("world")
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--mount-proc"),
            *(sys.executable, str(RUNNER), str(world), *LEVELS, *(_weaker.PREFIX + name for name in OPENED)),
        ],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _need(results: dict[str, Any], level: str) -> None:
    """Skip, with the level's own words, when it cannot be had here. The default level must be had."""
    if (why := results[level].get("unavailable")) and level != "namespace":
        pytest.skip(why)


def test_the_suite_is_large_enough() -> None:
    assert len(NAMES) >= 170


@pytest.mark.parametrize("level", CLOSED)
@pytest.mark.parametrize("name", NAMES)
def test_closed_inside(results: dict[str, Any], level: str, name: str) -> None:
    _need(results, level)
    assert results[level][name].startswith("closed"), results[level][name]


@pytest.mark.parametrize("name", NAMES)
def test_open_where_there_is_no_boundary(results: dict[str, Any], name: str) -> None:
    answer = results["process"][name]
    why = answer.partition(" ")[2]
    if why in ABSENT:
        pytest.skip(f"this machine does not have it: {why}")
    if why in WITHHELD and (name.startswith(KEPT) or not _all_capabilities()):
        pytest.skip(f"this container withholds it from the node too: {why}")
    assert answer == "open"


@pytest.mark.parametrize("level", ["process", "landlock"])
def test_what_is_open_is_what_is_said_to_be(results: dict[str, Any], level: str) -> None:
    _need(results, level)
    lines = (HERE / f"open_at_{level}.txt").read_text().splitlines()
    expected = {line for line in lines if line and not line.startswith("#")}
    found = results[level]
    is_open = {name for name, answer in found.items() if answer == "open"}
    assert is_open <= expected
    for name in expected - is_open:
        allowed = ABSENT + WITHHELD if name.startswith(KEPT) or not _all_capabilities() else ABSENT
        assert found[name].partition(" ")[2] in allowed, name


def _all_capabilities() -> bool:
    """Whether this process may do what the attacks do: DAC_OVERRIDE, SYS_ADMIN, NET_ADMIN, SYS_PTRACE, SYS_RAWIO."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    wanted = sum(1 << number for number in (1, 12, 17, 19, 21))
    return int(fields["CapEff"], 16) & wanted == wanted and fields["Seccomp"].strip() == "0"


def test_what_is_open_without_a_boundary_is_most_of_it(results: dict[str, Any]) -> None:
    if not _all_capabilities():
        pytest.skip("this container withholds much from the node itself")
    assert sum(answer == "open" for answer in results["process"].values()) >= 100


@pytest.mark.parametrize("level", ["namespace", "container"])
def test_nothing_can_be_filled_beyond_its_limit(results: dict[str, Any], level: str) -> None:
    _need(results, level)
    found = results[f"exhaust:{level}"]
    assert {found[place] for place in ("/workspace", "/tmp", "/dev/shm")} == {"ENOSPC"}


@pytest.mark.parametrize("level", ["namespace", "container"])
def test_a_fork_bomb_is_bounded_and_ends_with_its_boundary(results: dict[str, Any], level: str) -> None:
    _need(results, level)
    found = results[f"exhaust:{level}"]
    assert 40 <= found["most"] <= 65
    assert found["gone"]
    assert found["left"] == []


def test_every_way_to_be_weaker_is_tried() -> None:
    assert set(OPENED) == set(_weaker.NAMES)


@pytest.mark.parametrize("left_out", OPENED)
def test_a_boundary_with_one_thing_left_out_is_open(results: dict[str, Any], left_out: str) -> None:
    found = results[_weaker.PREFIX + left_out]
    assert {name for name in OPENED[left_out] if found[name] != "open"} == set()


def test_attacks_refuse_to_run_on_the_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(tmp_path), "process"],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "namespaces of their own" in done.stderr
    assert list(tmp_path.iterdir()) == []
