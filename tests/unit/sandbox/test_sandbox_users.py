"""Level namespace as an ordinary user, and in a container that withholds a fresh /proc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from holdfast.sandbox import confine

PROGRAM = Path(__file__).with_name("ordinary.py")
needs = [
    pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed") for tool in ("bwrap", "unshare")
]
pytestmark = needs


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that an ordinary user can reach and write; pytest's own are closed to others."""
    folder = Path(mkdtemp(prefix="hf-user-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _run(home: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), str(home), *options]
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    elif "--container" in options:
        pytest.skip("covering /proc needs root")
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_ordinary_user_gets_the_whole_namespace_and_an_honest_record(home: Path) -> None:
    found = _run(home)
    assert found["status"] == 0
    assert found["uid"] == found["held_uid"] == found["node"] != 0
    assert not found["own_uid"]
    assert any("not root" in note for note in found["notes"])
    assert found["proc"]
    assert found["home"] == "/workspace"


@pytest.mark.skipif(not confine.abi(), reason="this kernel has no Landlock, or it is closed here")
def test_an_ordinary_user_gets_landlock_and_an_honest_record(home: Path) -> None:
    found = _run(home, "--landlock")
    assert found["status"] == 0
    assert found["uid"] == found["held_uid"] == found["node"] != 0
    assert not found["own_uid"]
    assert "disk" not in found["limits"]
    assert any("not root" in note for note in found["notes"])
    assert any("nothing holds the limit on" in note for note in found["notes"])
    assert found["home"].startswith(str(home / "workspaces"))


def test_a_container_without_fresh_proc_gets_none_and_the_record_says_so(home: Path) -> None:
    found = _run(home, "--container")
    assert found["status"] == 0
    assert not found["proc"]
    assert any("no /proc" in note for note in found["notes"])
    assert found["uid"] != 0


def test_root_without_uids_to_give_is_refused(home: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from holdfast.sandbox import levels\nfrom holdfast.sandbox.base import Label, Spec\n"
        "asyncio.run(levels.level().start(Spec(argv=('/bin/true',), label=Label(tenant='t'), home=Path(sys.argv[1]))))"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip("user namespaces are closed here")
    assert "IsolationError: uids 200000-265535 do not exist" in done.stderr
    assert "uid_range" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to mount")
@pytest.mark.skipif(not confine.abi(), reason="this kernel has no Landlock, or it is closed here")
def test_root_that_may_not_mount_gets_landlock_without_a_limit_on_the_workspace(home: Path) -> None:
    code = (
        "import asyncio, json, sys\nfrom pathlib import Path\n"
        "from holdfast.sandbox import levels\nfrom holdfast.sandbox.base import Label, Spec\n"
        "async def main():\n"
        "    spec = Spec(argv=('/bin/sh', '-c', 'echo x > file'), label=Label(tenant='t'), home=Path(sys.argv[1]))\n"
        "    boundary = await levels.level('landlock').start(spec)\n"
        "    ended = await boundary.wait()\n"
        "    await boundary.close()\n"
        "    held = boundary.held\n"
        "    print(json.dumps([ended.status, held.own_uid, held.limits.get('disk'), held.notes]))\n"
        "asyncio.run(main())"
    )
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    status, own_uid, disk, notes = json.loads(done.stdout)
    assert (status, own_uid, disk) == (0, True, None)
    assert any("disk" in note for note in notes)
