"""The parts of the sandbox that decide without a boundary: masks, mounts, uids, cgroups, filters, diagnoses."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import IsolationError
from holdfast.sandbox import (
    bwrap,
    cgroup,
    diagnose,
    interpreter,
    masks,
    procs,
    registry,
    seccomp,
    syscalls,
    uids,
    views,
)
from holdfast.sandbox.base import Label, Limits, Mount, Spec

# masks


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        (".env", True),
        (".env.production", True),
        ("prod.env", True),
        (".env.example", False),
        (".ENV", True),
        (".git-credentials", True),
        ("server.pem", True),
        ("SERVER.KEY", True),
        ("acme-service-account.json", True),
        (".npmrc", True),
        (".pypirc", True),
        ("id_ed25519", True),
        ("id_ed25519.pub", False),
        ("environment.py", False),
        ("keys.py", False),
        ("data.json", False),
    ],
)
def test_names_of_secret_files(name: str, secret: bool) -> None:
    assert masks.secret_file(name) is secret


def test_secrets_are_found_at_any_depth_and_links_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / ".env").touch()
    (root / "a" / ".aws").mkdir()
    (root / "a" / ".aws" / "credentials").touch()
    elsewhere.mkdir()
    (elsewhere / "x.pem").touch()
    (root / "link").symlink_to(elsewhere)
    (root / "home").mkdir()
    files, folders = masks.find(root, also=root / "home")
    assert files == [root / "a" / "b" / ".env"]
    assert sorted(folders) == [root / "a" / ".aws", root / "home"]


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MAX_ENTRIES", 2)
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(IsolationError, match="mount a smaller folder"):
        masks.find(tmp_path)


# mounts


def _prepare(home: Path, *mounts: Mount) -> views.Prepared:
    home.mkdir(exist_ok=True)
    spec = Spec(argv=("x",), label=Label(tenant="t"), home=home, mounts=mounts)
    return views.Preparer().prepare(spec, root=False)


@pytest.mark.parametrize("source", ["/", "/etc", "/home", "/run", "/proc", "/var", "/root", "~", "/tmp"])
def test_what_is_too_wide_is_not_mounted(tmp_path: Path, source: str) -> None:
    path = Path(source).expanduser()
    if not path.exists():
        pytest.skip("there is no such folder here")
    with pytest.raises(IsolationError, match="too wide"):
        _prepare(tmp_path / "home", Mount(source=path, target=Path("/code")))


def test_holdfasts_own_home_is_never_mounted_and_hidden_in_what_is(tmp_path: Path) -> None:
    home = tmp_path / "project" / "state"
    home.mkdir(parents=True)
    with pytest.raises(IsolationError, match="too wide"):
        _prepare(home, Mount(source=home, target=Path("/code")))
    with pytest.raises(IsolationError, match="too wide"):
        _prepare(home, Mount(source=home.parent, target=Path("/code"), mask=False))
    prepared = _prepare(home, Mount(source=home.parent, target=Path("/code")))
    assert prepared.hide_folders == ("/code/state",)


@pytest.mark.parametrize(
    "target", ["/", "/proc", "/proc/x", "/dev/x", "/usr", "/workspace", "code", "/a/../etc", "/a//b/"]
)
def test_targets_that_are_made_otherwise(tmp_path: Path, target: str) -> None:
    (tmp_path / "code").mkdir()
    if str(Path(target)) == "/a/b":
        pytest.skip("pathlib cleans this one")
    with pytest.raises(IsolationError, match="no place inside"):
        _prepare(tmp_path / "home", Mount(source=tmp_path / "code", target=Path(target)))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="gone is to be mounted but cannot be read: No such file"):
        _prepare(tmp_path / "home", Mount(source=tmp_path / "gone", target=Path("/code")))


def test_a_source_that_others_cannot_read_says_how_to_change_that(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir(mode=0o700)
    spec = Spec(
        argv=("x",),
        label=Label(tenant="t"),
        home=tmp_path,
        mounts=(Mount(source=tmp_path / "code", target=Path("/code")),),
    )
    with pytest.raises(IsolationError, match=r"chmod -R o\+rX"):
        views._source(spec.mounts[0], tmp_path / "home", True)


# command line


def _plan(**fields: object) -> bwrap.Plan:
    base: dict[str, object] = {
        "views": (bwrap.View(source="/s/deep", target="/a/b"), bwrap.View(source="/s", target="/a")),
        "hide_files": ("/a/.env",),
        "hide_folders": ("/a/.aws",),
        "empty": "/empty",
        "env": {"X": "1"},
        "limits": Limits(disk=4096),
        "passwd": 3,
        "group": 4,
        "hosts": 5,
        "seccomp": (6, 7),
        "info": 8,
    }
    return bwrap.Plan(**(base | fields))  # type: ignore[arg-type]


def test_the_root_is_made_read_only_after_the_last_mount() -> None:
    args = bwrap.arguments(_plan())
    last = max(at for at, arg in enumerate(args) if arg in ("--bind", "--ro-bind", "--tmpfs", "--proc", "--dev"))
    root = next(at for at, arg in enumerate(args) if arg == "--remount-ro" and args[at + 1] == "/")
    assert root > last


def test_outer_folders_are_mounted_before_inner_ones_and_masks_after_both() -> None:
    args = bwrap.arguments(_plan())
    assert args.index("/a") < args.index("/a/b") < args.index("/a/.aws") < args.index("/a/.env")


def test_every_namespace_is_asked_for_and_no_capability_is_kept() -> None:
    args = bwrap.arguments(_plan())
    assert set(bwrap.UNSHARE) <= set(args)
    assert args[args.index("--cap-drop") + 1] == "ALL"
    assert {"--disable-userns", "--die-with-parent", "--new-session", "--clearenv"} <= set(args)
    assert "--share-net" not in args


def test_containers_get_a_form_without_fresh_proc() -> None:
    args = bwrap.arguments(_plan(fresh_proc=False, disable_userns=False))
    assert "--proc" not in args
    assert "--disable-userns" not in args


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z]{1,8}", fullmatch=True), st.text(st.characters(exclude_characters="\0", codec="utf-8"))
    )
)
def test_the_environment_is_the_given_one_over_a_fixed_base(env: dict[str, str]) -> None:
    found = bwrap.environment(env)
    assert env.items() <= found.items()
    assert set(found) - set(env) <= {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR"}


# interpreter


def test_interpreter_mounts_hold_all_that_the_worker_imports() -> None:
    mounts = interpreter.interpreter_mounts()
    targets = [str(mount.target) for mount in mounts] + ["/usr"]
    for path in (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), msgspec.__file__, interpreter.__file__):
        assert any(path == top or path.startswith(top + "/") for top in targets), path
    assert not any(mount.writable or mount.mask for mount in mounts)
    assert os.path.expanduser("~") not in targets


def test_worker_runs_a_module_without_the_working_directory_on_its_path(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    done = subprocess.run(
        [*interpreter.worker_argv("json.tool"), "--help"], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0


# uids


def test_a_uid_is_leased_once_and_comes_back(tmp_path: Path) -> None:
    first, second = (uids.lease((200_000, 200_001), tmp_path) for _ in range(2))
    assert {first.uid, second.uid} == {200_000, 200_001}
    with pytest.raises(IsolationError, match="every uid of 200000-200001 is taken"):
        uids.lease((200_000, 200_001), tmp_path)
    first.release()
    first.release()
    assert uids.lease((200_000, 200_001), tmp_path).uid == first.uid
    second.release()


def test_a_uid_of_a_dead_holder_waits_until_no_process_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "200000").write_text("held\n")
    monkeypatch.setattr(procs, "used_uids", lambda: {200_000})
    with pytest.raises(IsolationError, match="is taken"):
        uids.lease((200_000, 200_000), tmp_path)
    uids.sweep(tmp_path)
    assert (tmp_path / "200000").exists()
    monkeypatch.setattr(procs, "used_uids", lambda: set[int]())
    uids.sweep(tmp_path)
    assert not (tmp_path / "200000").exists()
    uids.lease((200_000, 200_000), tmp_path).release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")
def test_only_what_no_lease_and_no_process_holds_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases, place = tmp_path / "uids", tmp_path / "place"
    place.mkdir()
    for name, gid in (("left", 200_000), ("leased", 200_001), ("used", 200_002), ("roots", 0)):
        (place / name).mkdir()
        os.chown(place / name, 0, gid)
    lease = uids.lease((200_001, 200_001), leases)
    monkeypatch.setattr(procs, "used_uids", lambda: {0, 200_002})
    for path in uids.abandoned(place, leases):
        assert path.name == "left"
        with pytest.raises(IsolationError, match="is taken"):
            uids.lease((200_000, 200_000), leases)
        path.rmdir()
    lease.release()
    assert sorted(path.name for path in place.iterdir()) == ["leased", "roots", "used"]
    uids.lease((200_000, 200_000), leases).release()
    assert list(uids.abandoned(tmp_path / "nowhere", leases)) == []
    # After a restart of the host there are no leases.
    assert [path.name for path in uids.abandoned(place, tmp_path / "gone")] == ["leased"]


def test_a_living_lease_is_not_swept(tmp_path: Path) -> None:
    lease = uids.lease((200_000, 200_000), tmp_path)
    uids.sweep(tmp_path)
    assert (tmp_path / "200000").exists()
    lease.release()


@pytest.mark.parametrize("bounds", [(0, 10), (10, 5), (-1, 5), (1, 1 << 33)])
def test_ranges_that_are_none(bounds: tuple[int, int]) -> None:
    with pytest.raises(IsolationError, match="not a range of uids above 0"):
        uids.usable(bounds)


def test_used_uids_hold_our_own() -> None:
    assert os.getuid() in procs.used_uids()


# processes


def test_a_process_is_named_by_its_start() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        named = procs.identify(child.pid)
        assert named is not None
        other = procs.Process(child.pid, named.start + 1)
        assert procs.alive(named)
        assert not procs.alive(other)
        assert procs.open_pidfd(other) is None
        fd = procs.open_pidfd(named)
        assert fd is not None
        assert not procs.gone(fd)
        assert not procs.wait_gone([fd], 0)
        procs.send_kill(fd)
        assert procs.wait_gone([fd], 60)
        child.wait()
        procs.send_kill(fd)
        os.close(fd)
        assert not procs.alive(named)
        assert procs.open_pidfd(named) is None


# control groups, on a tree of files


def _hierarchy(tmp_path: Path, mounts: str, own: str) -> cgroup.Cgroups:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text(mounts)
    (proc / "self" / "cgroup").write_text(own)
    return cgroup.Cgroups(proc)


def test_version_2_limits(tmp_path: Path) -> None:
    base = tmp_path / "fs" / "mine"
    base.mkdir(parents=True)
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        (base / name).write_text("cpu memory pids\n")
    groups = _hierarchy(tmp_path, f"1 0 0:1 / {tmp_path}/fs rw - cgroup2 cgroup2 rw\n", "0::/mine\n")
    assert groups.version == 2
    group = groups.create("x", Limits(memory=1 << 20, swap=None, pids=10, cpu=0.5), own=2)
    assert group is not None
    [path] = group.paths
    assert path.parent == base / "holdfast"
    assert (path / "memory.max").read_text() == str(1 << 20)
    assert (path / "pids.max").read_text() == "12"
    assert (path / "cpu.max").read_text() == "50000 100000"
    assert group.held == {"memory": "cgroup2", "pids": "cgroup2", "cpu": "cgroup2"}
    (path / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    (path / "memory.current").write_text("5\n")
    (path / "memory.peak").write_text("9\n")
    assert (group.oom_kills(), group.memory()) == (3, (5, 9))


def test_version_1_limits(tmp_path: Path) -> None:
    mounts, own = "", ""
    for number, which in enumerate(("memory", "pids", "cpu")):
        (tmp_path / which / "mine").mkdir(parents=True)
        mounts += f"1 0 0:1 / {tmp_path}/{which} rw - cgroup cgroup rw,{which}\n"
        own += f"{number + 1}:{which}:/mine\n"
    groups = _hierarchy(tmp_path, mounts, own)
    assert groups.version == 1
    group = groups.create("x", Limits(memory=1 << 20, swap=0, pids=10))
    assert group is not None
    assert group.held == {"memory": "cgroup1", "pids": "cgroup1"}
    assert (group.dirs["memory"] / "memory.limit_in_bytes").read_text() == str(1 << 20)
    assert (group.dirs["pids"] / "pids.max").read_text() == "10"
    assert "cpu" not in group.dirs


@pytest.mark.parametrize("mounts", ["", "1 0 0:1 / /nowhere rw - cgroup2 cgroup2 rw\n"])
def test_no_hierarchy_is_no_group(tmp_path: Path, mounts: str) -> None:
    assert _hierarchy(tmp_path, mounts, "0::/\n").create("x", Limits()) is None


def test_only_groups_of_dead_makers_are_orphaned() -> None:
    here = procs.identify(os.getpid())
    assert here is not None
    space = procs.pid_namespace()
    assert not cgroup._orphaned(f"{space}.{here.pid}.{here.start}.x")
    assert cgroup._orphaned(f"{space}.{here.pid}.{here.start + 1}.x")
    assert not cgroup._orphaned(f"{space + 1}.{here.pid}.{here.start + 1}.x")
    assert not cgroup._orphaned("something-else")


# system call filters


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_programs_compile_for_each_architecture(machine: str) -> None:
    for program in seccomp.compile_for(machine):
        assert len(program) % 8 == 0
        assert 8 < len(program) // 8 < 4096


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(IsolationError, match="no system call filter is made for riscv64"):
        seccomp.compile_for("riscv64")


def test_lists_do_not_overlap_and_leave_the_dangerous_out() -> None:
    assert not syscalls.ALLOWED & syscalls.DENIED
    assert not syscalls.ALLOWED & {"clone3", "openat2", "socket", "clone", "ioctl", "chmod", "open"}
    dangerous = "ptrace keyctl bpf io_uring_setup userfaultfd perf_event_open mount unshare setns pidfd_getfd"
    assert set(dangerous.split()) <= syscalls.DENIED


def test_compiled_programs_are_kept_and_a_broken_copy_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "_memory", {})
    first = seccomp.programs(tmp_path)
    [path] = tmp_path.iterdir()
    monkeypatch.setattr(seccomp, "compile_for", lambda machine: pytest.fail("it was kept"))
    monkeypatch.setattr(seccomp, "_memory", {})
    assert seccomp.programs(tmp_path) == first
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], whole[:50] + b"\xff" + whole[51:]):
        path.write_bytes(broken)
        monkeypatch.setattr(seccomp, "_memory", {})
        made: list[str] = []
        monkeypatch.setattr(seccomp, "compile_for", lambda machine, made=made: made.append(machine) or first)
        assert seccomp.programs(tmp_path) == first
        assert made == [platform.machine()]
        assert path.read_bytes() == whole


# diagnoses


def _sysctl(tmp_path: Path, **values: str) -> Path:
    for name, value in values.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    return tmp_path


@pytest.mark.parametrize(
    ("values", "said", "expected"),
    [
        (
            {"kernel__apparmor_restrict_unprivileged_userns": "1"},
            "bwrap: setting up uid map: Permission denied",
            "apparmor_parser -r",
        ),
        (
            {"kernel__unprivileged_userns_clone": "0"},
            "bwrap: No permissions to create new namespace",
            "unprivileged_userns_clone=1",
        ),
        (
            {"user__max_user_namespaces": "0"},
            "bwrap: Creating new namespace failed: No space left on device",
            "max_user_namespaces=",
        ),
        ({}, "bwrap: No permissions to create new namespace", "docker run --security-opt"),
        ({}, "bwrap: Can't find source path /x", "holdfast sandbox probe"),
    ],
)
def test_each_failure_names_its_cure(tmp_path: Path, values: dict[str, str], said: str, expected: str) -> None:
    assert expected in diagnose.explain(said, _sysctl(tmp_path, **values))


def test_missing_and_old_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose.shutil, "which", lambda name, path: None if name == "bwrap" else f"/bin/{name}")
    with pytest.raises(IsolationError, match="apt install bubblewrap"):
        diagnose.tools.__wrapped__()
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    old.chmod(0o755)
    monkeypatch.setattr(diagnose.shutil, "which", lambda name, path: str(old))
    with pytest.raises(IsolationError, match=r"bubblewrap 0\.8 or newer is needed"):
        diagnose.tools.__wrapped__()


# registry


def _entry(**fields: object) -> registry.Entry:
    nobody = procs.Process(4_000_000, 1)
    base: dict[str, object] = {
        "id": "one",
        "level": "namespace",
        "label": Label(tenant="t", agent="a"),
        "node": nobody,
        "outer": nobody,
        "init": nobody,
        "boot": procs.boot_id(),
        "pid_namespace": procs.pid_namespace(),
    }
    return registry.Entry(**(base | fields))  # type: ignore[arg-type]


def test_entries_come_back_and_garbage_is_left_out(tmp_path: Path) -> None:
    assert registry.entries(tmp_path) == []
    path = registry.write(tmp_path, _entry())
    (path.parent / "broken.json").write_text("{")
    (path.parent / "other.json").write_text('{"id": 3}')
    assert registry.entries(tmp_path) == [_entry()]
    registry.forget(tmp_path, "one")
    registry.forget(tmp_path, "one")
    assert registry.entries(tmp_path) == []


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        named = procs.identify(child.pid)
        assert named is not None
        other = procs.Process(child.pid, named.start - 1)
        registry.write(tmp_path, _entry(outer=other, init=other, node=other))
        assert [one.gone for one in registry.end_matching(tmp_path, lambda label: True)] == [True]
        assert [one.gone for one in registry.reap(tmp_path)] == [True]
        assert registry.entries(tmp_path) == []
        assert procs.alive(named)
        child.kill()


def test_what_another_boot_left_is_forgotten_and_another_pid_namespace_is_not_judged(tmp_path: Path) -> None:
    me = procs.identify(os.getpid())
    registry.write(tmp_path, _entry(id="rebooted", boot="another", outer=me, node=me))
    registry.write(tmp_path, _entry(id="container", pid_namespace=1))
    assert registry.end_matching(tmp_path, lambda label: True) == []
    assert registry.reap(tmp_path) == []
    assert [entry.id for entry in registry.entries(tmp_path)] == ["container"]


def test_reaping_removes_only_a_workspace_of_this_home(tmp_path: Path) -> None:
    mine, foreign = tmp_path / "home" / "workspaces" / "w", tmp_path / "foreign"
    for folder in (mine, foreign):
        folder.mkdir(parents=True)
    home = tmp_path / "home"
    registry.write(home, _entry(id="a", workspace=str(mine)))
    registry.write(home, _entry(id="b", workspace=str(foreign)))
    registry.reap(home)
    assert not mine.exists()
    assert foreign.exists()
