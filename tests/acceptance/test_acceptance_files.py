"""Files leave a workspace through the collector alone: sealed, recorded, exported; what is no plain file stays."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import StoreError
from holdfast.node.artefacts import FOLDER
from holdfast.sandbox.collector import Bounds

AGENT = """
import os
import socket
import stat

from holdfast import DeniedError, PayloadError, StepError, agent, workflow


@agent(name="scribe")
class Scribe:
    @workflow
    def run(self, ctx):
        return ctx.call(self.write)

    def write(self, ctx):
        os.makedirs("out/deep")
        with open("out/deep/report.txt", "w") as file:
            file.write("the report " * 200_000)
        with open("out/empty", "w"):
            pass
        os.chmod("out/empty", 0o755)
        found = ctx.files.collect("out")
        return {"names": found.names, "left": found.left, "all": ctx.files.list(),
                "back": ctx.files.read("out/deep/report.txt")[:10].decode()}

    @workflow
    def attack(self, ctx):
        return ctx.call(self.plant)

    def plant(self, ctx):
        refused = {}
        def attempt(name, work):
            try:
                work(name)
            except OSError as error:
                refused[name] = error.errno
        os.symlink("/etc/passwd", "link")
        os.symlink("/", "folder")
        os.symlink("../../../etc", "up")
        os.symlink("plain", "inner")
        with open("plain", "w") as file:
            file.write("plain")
        with open("twice", "w") as file:
            file.write("twice")
        os.link("twice", "thrice")
        attempt("hard", lambda name: os.link("/etc/passwd", name))
        os.mkfifo("fifo")
        attempt("device", lambda name: os.mknod(name, 0o600 | stat.S_IFCHR, os.makedev(1, 3)))
        attempt("setuid", lambda name: (open(name, "w").close(), os.chmod(name, 0o4755)))
        socket.socket(socket.AF_UNIX).bind("sock")
        with open("sparse", "wb") as file:
            file.truncate(400 << 20)
        os.mkdir("closed")
        os.chmod("closed", 0)
        with open(b"bad\\xff", "w"):
            pass
        found = ctx.files.collect()
        told = {}
        for path in ("link", "folder/etc/passwd", "up/passwd", "inner", "fifo", "missing"):
            try:
                one = ctx.files.collect(path)
                told[path] = one.left or one.names
            except PayloadError as error:
                told[path] = str(error)
        return {"names": found.names, "left": found.left, "told": told, "refused": refused}

    @workflow
    def flood(self, ctx):
        return ctx.call(self.fill, ctx.input.what)

    def fill(self, ctx, what):
        if what == "many":
            for number in range(1001):
                open(f"f{number}", "w").close()
        elif what == "deep":
            for number in range(40):
                os.mkdir("d")
                os.chdir("d")
            open("bottom", "w").close()
        else:
            block = os.urandom(1 << 20)
            with open("large", "wb") as file:
                for _ in range(257):
                    file.write(block)
        try:
            return ctx.files.collect().left
        except PayloadError as error:
            return str(error)

    @workflow
    def refused(self, ctx):
        return ctx.call(self.ask)

    def ask(self, ctx):
        with open("secret", "w") as file:
            file.write("4111 1111 1111 1111")
        try:
            ctx.files.collect("secret")
        except DeniedError as error:
            return {"rule": error.rule, "files": ctx.files.list()}

    @workflow
    def waits(self, ctx):
        names = ctx.call(self.keep)
        ctx.wait_signal("go")
        return [names, ctx.files.read("kept").decode()]

    def keep(self, ctx):
        with open("kept", "w") as file:
            file.write("kept")
        return ctx.files.collect().names
"""


@pytest.fixture
def scribe(lab: Any) -> Any:
    lab.write("agents.py", AGENT)
    return lab


def blobs(lab: Any) -> list[Path]:
    return [path for path in (lab.home / FOLDER).rglob("*") if path.is_file()]


def test_what_was_collected_is_recorded_sealed_and_exported(scribe: Any) -> None:
    view = scribe.run("agents.py:Scribe", workflow="run")
    assert view.output == {
        "names": ["out/deep/report.txt", "out/empty"],
        "left": {},
        "all": ["out/deep/report.txt", "out/empty"],
        "back": "the report",
    }
    text = b"the report " * 200_000
    shown = scribe.json("runs", "files", view.run_id)["files"]
    assert "out/deep/report.txt" in scribe.cli("runs", "show", view.run_id).stdout
    assert [(one["name"], one["size"]) for one in shown] == [("out/deep/report.txt", len(text)), ("out/empty", 0)]
    # The record commits to the sealed bytes, which hold nothing of the plain ones.
    kept = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in blobs(scribe)}
    assert set(kept) == {one["digest"] for one in shown}
    assert not any(b"the report" in path.read_bytes() or path.stat().st_mode & 0o177 for path in kept.values())
    (event,) = [event for event in scribe.events(view.run_id, "outcome") if "collected" in event.data.get("effect", {})]
    assert event.data["effect"]["collected"] == [[one["name"], one["size"], one["digest"]] for one in shown]
    out = scribe.folder / "export"
    listed = scribe.json("runs", "files", view.run_id, "--out", str(out))
    assert listed["files"] == shown
    assert (out / "out/deep/report.txt").read_bytes() == text
    assert (out / "out/empty").read_bytes() == b""
    again = scribe.cli("runs", "files", view.run_id, "--out", str(out))
    assert (again.returncode, "choose another folder" in again.stderr) == (2, True)
    scribe.verify()


def test_nothing_but_plain_files_comes_out(scribe: Any) -> None:
    view = scribe.run("agents.py:Scribe", workflow="attack")
    assert view.status == "completed", view
    output = view.output
    assert output["names"] == ["plain", "setuid"]
    assert {"link", "folder", "up", "inner", "twice", "thrice", "fifo", "sock", "sparse"} <= set(output["left"])
    # What could not be made in the first place; the one without its bit is a plain file.
    assert set(output["refused"]) == {"hard", "device", "setuid"}
    told = output["told"]
    assert all("symbolic link" in told[path]["link" if path == "link" else path] for path in ("link", "inner"))
    assert told["folder/etc/passwd"] == {"folder/etc/passwd": "it leads out of the workspace"}
    assert told["up/passwd"] == {"up/passwd": "it leads out of the workspace"}
    assert "nothing stands at missing" in told["missing"]
    passwd = Path("/etc/passwd").read_bytes()
    assert [one.name for one in view.files] == ["plain", "setuid"]
    assert all(path.stat().st_size < len(passwd) for path in blobs(scribe))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("many", "at most 1000 files"),
        ("deep", "too long or too deep"),
        ("large", f"larger than {Bounds().file_size} bytes"),
    ],
)
def test_too_much_comes_out_in_no_part(scribe: Any, what: str, said: str) -> None:
    view = scribe.run("agents.py:Scribe", {"what": what}, workflow="flood")
    assert view.status == "completed", view
    assert said in json.dumps(view.output)
    assert view.files == ()
    assert blobs(scribe) == []


@pytest.mark.parametrize(
    "policy",
    [
        "- {id: stay, category: path_guard, gates: [file], with: {allow: ['/public']}}",
        "- {id: stay, category: pan_guard, gates: [file]}",
    ],
)
def test_a_policy_that_denies_leaves_nothing(scribe: Any, policy: str) -> None:
    view = scribe.run("agents.py:Scribe", workflow="refused", policies=policy)
    assert view.output == {"rule": "stay", "files": []}, view
    assert blobs(scribe) == []


def test_files_outlast_the_process_and_a_fork_has_them(scribe: Any) -> None:
    run = scribe.run("agents.py:Scribe", workflow="waits").run_id
    with scribe.service() as service:
        copy = service.fork(run)
        for one in (run, copy):
            service.signal(one, "go", b"null", principal=scribe.person)
    for one in (run, copy):
        assert scribe.drive(one).output == [["kept"], "kept"]
    with scribe.service() as service:
        assert b"".join(service.file(copy, "kept")) == b"kept"
    scribe.verify()


@pytest.mark.parametrize("change", ["flip", "cut", "swap", "gone"])
def test_a_changed_artefact_is_not_handed_out(scribe: Any, change: str) -> None:
    view = scribe.run("agents.py:Scribe", workflow="run")
    large = max(blobs(scribe), key=lambda path: path.stat().st_size)
    data = large.read_bytes()
    frame = 4 + (1 << 20) + 16
    changed = {
        "flip": data[:100] + bytes([data[100] ^ 1]) + data[101:],
        "cut": data[:frame],
        "swap": data[frame : 2 * frame] + data[:frame] + data[2 * frame :],
    }
    if change == "gone":
        large.unlink()
    else:
        large.write_bytes(changed[change])
    with scribe.service() as service, pytest.raises(StoreError, match="artefact"):
        b"".join(service.file(view.run_id, "out/deep/report.txt"))
    out = scribe.folder / "export"
    assert scribe.cli("runs", "files", view.run_id, "--out", str(out)).returncode == 10
    assert not (out / "out/deep/report.txt").exists()
    assert os.listdir(out / "out/deep") == []
