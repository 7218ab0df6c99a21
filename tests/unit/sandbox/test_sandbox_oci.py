"""What an OCI runtime is told: the filter's alternatives, the mounts and the ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.sandbox import oci, runtime, seccomp, syscalls
from holdfast.sandbox.base import Limits
from holdfast.sandbox.bwrap import View

MACHINES = tuple(seccomp.ARCHITECTURES)


def bundle(**fields: Any) -> oci.Bundle:
    base: dict[str, Any] = {
        "argv": ("/bin/true",),
        "env": {"GIVEN": "yes"},
        "views": (View(source="/usr", target="/code"),),
        "hide_files": ("/code/.env",),
        "hide_folders": ("/code/.aws",),
        "empty": "/empty",
        "uid": 200_001,
        "root_uid": 200_002,
        "limits": Limits(),
        "gate": oci.gate(3, "3>&-"),
    }
    return oci.Bundle(**(base | fields))


def action(filter_: dict[str, Any], name: str, *arguments: int) -> tuple[str, int]:
    """What a filter does with a call, by the specification: the rules of one list are alternatives."""
    for rule in filter_["syscalls"]:
        if name in rule["names"] and all(_holds(one, arguments) for one in rule["args"]):
            return rule["action"], rule.get("errnoRet", 0)
    return filter_["defaultAction"], filter_["defaultErrnoRet"]


def _holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["index"]]
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return bool(value == condition["value"])
        case "SCMP_CMP_LE":
            return bool(value <= condition["value"])
        case "SCMP_CMP_MASKED_EQ":
            return bool(value & condition["value"] == condition["valueTwo"])
    raise AssertionError(condition)


def allowed(name: str, *arguments: int) -> bool:
    return action(oci.filter_("x86_64"), name, *arguments)[0] == "SCMP_ACT_ALLOW"


@given(st.integers(0, (1 << 64) - 1))
def test_every_request_is_allowed_but_those_that_push_into_a_terminal(request: int) -> None:
    forbidden = request & 0xFFFFFFFF in (seccomp.TIOCSTI, seccomp.TIOCLINUX)
    assert allowed("ioctl", 0, request) is not forbidden


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("request_", [seccomp.TIOCSTI, seccomp.TIOCLINUX])
def test_no_high_bit_evades(request_: int, high: int) -> None:
    assert not allowed("ioctl", 0, request_ | high)
    assert allowed("ioctl", 0, 0x5413 | high)


@given(st.sets(st.integers(0, 255), min_size=1, max_size=4), st.integers(0, 255))
def test_the_complement_of_any_values(forbidden: set[int], value: int) -> None:
    rules = oci._others(tuple(sorted(forbidden)))
    assert any(value & mask == wanted for mask, wanted in rules) is (value not in forbidden)


@given(st.integers(0, (1 << 32) - 1))
def test_no_namespace_is_made_by_clone(flags: int) -> None:
    assert allowed("clone", flags) is (flags & seccomp.NAMESPACE_FLAGS == 0)


@given(st.integers(0, 0o177777))
def test_modes(mode: int) -> None:
    setid = bool(mode & 0o6000)
    assert allowed("chmod", 0, mode) is not setid
    assert allowed("fchmodat", 0, 0, mode) is not setid
    assert allowed("mknod", 0, mode) is not (setid or bool(mode & 0o020000))
    assert allowed("open", 0, 0, mode)
    assert allowed("open", 0, 0o100, mode) is not setid
    assert allowed("openat", 0, 0, 0o100, mode) is not setid


@pytest.mark.parametrize("family", range(64))
def test_families(family: int) -> None:
    assert allowed("socket", family, 1, 0) is (family in (1, 2, 10))


def test_priorities_go_down_only() -> None:
    assert allowed("setpriority", 0, 0, 5)
    assert not allowed("setpriority", 0, 0, (1 << 64) - 5)
    assert not allowed("setpriority", 0, 0, (1 << 32) - 5)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_denied_is_denied_and_what_is_unknown_does_not_exist(machine: str) -> None:
    made = oci.filter_(machine)
    for name in syscalls.DENIED:
        assert action(made, name, *([0] * 6)) == ("SCMP_ACT_ERRNO", 1)
    for name in ("clone3", "openat2", "a_call_of_a_newer_kernel"):
        assert action(made, name, *([0] * 6)) == ("SCMP_ACT_ERRNO", 38)
    assert len(made["architectures"]) == 1
    json.dumps(made)


def test_the_hardening_is_all_there() -> None:
    made = oci.configuration(bundle())
    process, linux = made["process"], made["linux"]
    assert process["noNewPrivileges"]
    assert not any(process["capabilities"].values())
    assert len(process["capabilities"]) == 5
    assert made["root"]["readonly"]
    assert {one["type"] for one in linux["namespaces"]} == {
        *("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
    }
    assert not any("path" in one for one in linux["namespaces"])
    assert process["user"]["uid"] == 200_001
    assert 0 not in [one["hostID"] for one in linux["uidMappings"] + linux["gidMappings"]]
    assert {"/code/.env", "/code/.aws", "/proc/kcore"} <= set(linux["maskedPaths"])
    assert "/proc/sys" in linux["readonlyPaths"]
    for mount in made["mounts"]:
        if mount["type"] == "bind":
            assert {"ro", "nosuid", "nodev"} <= set(mount["options"]), mount
    assert not any(mount["destination"] == "/sys" for mount in made["mounts"])
    assert not any("GIVEN" not in one and "NODE" in one for one in process["env"])


def test_gvisor_which_masks_nothing_is_told_with_mounts() -> None:
    targets = {mount["destination"]: mount for mount in oci.configuration(bundle(gvisor=True))["mounts"]}
    assert targets["/code/.env"]["source"] == "/empty"
    assert targets["/code/.aws"]["type"] == "tmpfs"
    assert "ro" in targets["/sys"]["options"]


def test_the_root_has_a_place_for_every_mount(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "file").touch()
    views = (
        View(source=str(tmp_path / "source"), target="/opt/deep/code"),
        View(source=str(tmp_path / "file"), target="/data/file"),
    )
    oci.furnish(tmp_path / "bundle", bundle(views=views))
    root = tmp_path / "bundle" / "rootfs"
    assert (root / "opt/deep/code").is_dir()
    assert (root / "data/file").is_file()
    assert (root / "workspace").stat().st_mode & 0o777 == 0o700
    assert "200001" in (root / "etc/passwd").read_text()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "HOST", tmp_path)
    monkeypatch.setattr(runtime, "BUNDLES", tmp_path / "containers")
    (tmp_path / "containers" / "aa").mkdir(parents=True)
    (tmp_path / "containers" / "bb").mkdir()
    runtime.remove("container", "aa")
    assert [path.name for path in (tmp_path / "containers").iterdir()] == ["bb"]
