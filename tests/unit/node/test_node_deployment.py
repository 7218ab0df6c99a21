"""What belongs to a deployment, what it is named by, and what a class says of itself without being run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import StoreError, UsageError
from holdfast.journal.open import open_store
from holdfast.node import deployment
from holdfast.node.describe import choose, describe, imports
from holdfast.values import sha256

AGENT = """
from holdfast import agent, workflow
import helper
from pack.inner import thing

@agent(name="pinned")
class Pinned:
    @workflow
    def main(self, ctx):
        return 1

@agent
class Other:
    @workflow(name="named")
    def first(self, ctx):
        return 1

    @workflow
    def second(self, ctx):
        return 2

class Plain:
    pass

@agent(name="none")
class Idle:
    pass
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "pack").mkdir(parents=True)
    (folder / "agents.py").write_text(AGENT)
    (folder / "helper.py").write_text("import deeper\n")
    (folder / "deeper.py").write_text("import os\n")
    (folder / "unrelated.py").write_text("raise AssertionError\n")
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "inner.py").write_text("thing = 1\n")
    (folder / "pack" / "data.json").write_text("{}")
    (folder / "pack" / ".hidden").write_text("")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = open_store("sqlite", tmp_path / "home")
    yield opened
    opened.close()


def test_it_holds_the_file_and_what_it_imports_and_no_more(code: Path) -> None:
    pinned = deployment.pin(f"{code}/agents.py:Pinned")
    assert set(pinned.deployment.files) == {
        "agents.py", "helper.py", "deeper.py", "pack/__init__.py", "pack/inner.py", "pack/data.json",
    }  # fmt: skip
    assert pinned.deployment.target == "agents.py:Pinned"
    assert (pinned.description.agent, pinned.workflow) == ("pinned", "main")
    assert all(sha256(data) == name for name, data in pinned.blobs.items())
    assert pinned.digest in pinned.blobs


def test_its_name_follows_from_its_content_alone(code: Path, tmp_path: Path) -> None:
    first = deployment.pin(f"{code}/agents.py:Pinned").digest
    moved = tmp_path / "moved"
    code.rename(moved)
    assert deployment.pin(f"{moved}/agents.py:Pinned").digest == first
    assert deployment.pin("agents.py:Pinned", cwd=moved).digest == first
    assert deployment.pin("agents:Pinned", cwd=moved).digest == first
    assert deployment.pin(f"{moved}/agents.py:Other", "named").digest != first
    (moved / "unrelated.py").write_text("changed")
    assert deployment.pin(f"{moved}/agents.py:Pinned").digest == first
    (moved / "deeper.py").write_text("import sys\n")
    assert deployment.pin(f"{moved}/agents.py:Pinned").digest != first


@pytest.mark.parametrize(
    ("target", "workflow", "words"),
    [
        ("agents.py", "", "is no target"),
        (":Pinned", "", "is no target"),
        ("agents.py:Pinned()", "", "is no target"),
        ("missing.py:Pinned", "", "there is no file missing.py"),
        ("no.such.module:Pinned", "", "there is no module no.such.module"),
        ("agents.py:Missing", "", "has no class Missing; it has Idle, Other, Pinned"),
        ("agents.py:Plain", "", "class Plain is not an agent"),
        ("agents.py:Idle", "", "class Idle has no workflow"),
        ("agents.py:Other", "", "several workflows; choose one with --workflow: named, second"),
        ("agents.py:Pinned", "other", "has no workflow other; it has main"),
        ("helper.py:Pinned", "", "it has no class with @agent"),
        ("pack/data.json:Pinned", "", "has no class Pinned"),
    ],
)
def test_a_target_that_cannot_be_used_says_why(code: Path, target: str, workflow: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        deployment.pin(target, workflow, cwd=code)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def broken(:\n", "a.py:1: not Python"),
        ("name = 'x'\n@agent(name=name)\nclass A:\n    @workflow\n    def main(self): ...\n", "must be a literal text"),
        ("@agent(name='')\nclass A:\n    @workflow\n    def main(self): ...\n", "must be a literal text"),
        ("x = '\0'", "not Python"),
    ],
)
def test_source_that_does_not_say_its_name_is_refused(source: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        describe(source.encode(), "A", "a.py")
    assert words in str(error.value)


def test_names_are_read_from_decorators() -> None:
    source = b"""
import holdfast as h
class Base:
    @h.workflow
    async def inherited(self, ctx): ...
@h.agent
class Default(Base):
    @h.workflow("by position")
    def own(self, ctx): ...
@h.agent("first")
class First:
    @h.workflow()
    def main(self, ctx): ...
"""
    found = describe(source, "Default", "a.py")
    assert (found.agent, found.workflows) == ("Default", ("by position", "inherited"))
    assert choose(found, "inherited", "a.py") == "inherited"
    assert describe(source, "First", "a.py").agent == "first"


@pytest.mark.parametrize(
    ("source", "package", "wanted"),
    [
        ("import a.b, c as d", "", {"a.b", "c"}),
        ("from a import b", "", {"a", "a.b"}),
        ("from . import b", "p.q", {"p.q", "p.q.b"}),
        ("from .x import b", "p.q", {"p.q.x", "p.q.x.b"}),
        ("from .. import b", "p.q", {"p", "p.b"}),
        ("def f():\n    import late", "", {"late"}),
        ("x = 1", "", set()),
    ],
)
def test_what_source_imports(source: str, package: str, wanted: set[str]) -> None:
    assert imports(source.encode(), package) == wanted


def test_a_folder_is_laid_out_from_the_store_and_put_right_when_changed(code: Path, store: Any, tmp_path: Path) -> None:
    pinned = deployment.pin(f"{code}/agents.py:Pinned")
    store.put_blobs(pinned.blobs)
    home = tmp_path / "home"
    folder, laid = deployment.materialise(store, pinned.digest, home)
    assert laid == pinned.deployment
    assert (folder / "agents.py").read_text() == AGENT
    for change in (_append, _remove, _add):
        change(folder)
        again, _ = deployment.materialise(store, pinned.digest, home)
        assert again == folder
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == set(laid.files)
        assert (folder / "helper.py").read_text() == "import deeper\n"


def _append(folder: Path) -> None:
    (folder / "helper.py").chmod(0o644)
    (folder / "helper.py").write_text("import deeper\nraise SystemExit\n")


def _remove(folder: Path) -> None:
    (folder / "deeper.py").unlink()


def _add(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("raise SystemExit\n")


def test_bytes_that_are_missing_or_changed_in_the_store_are_an_error(code: Path, store: Any, tmp_path: Path) -> None:
    pinned = deployment.pin(f"{code}/agents.py:Pinned")
    with pytest.raises(StoreError, match="does not hold deployment"):
        deployment.load(store, pinned.digest)
    lost = pinned.deployment.files["helper.py"]
    store.put_blobs({name: data for name, data in pinned.blobs.items() if name != lost})
    with pytest.raises(StoreError, match=r"does not hold helper\.py"):
        deployment.materialise(store, pinned.digest, tmp_path / "home")


def test_a_child_is_another_target_of_the_same_files(code: Path, store: Any) -> None:
    pinned = deployment.pin(f"{code}/agents.py:Pinned")
    store.put_blobs(pinned.blobs)
    for target in ("agents:Other", "agents.py:Other"):
        child, held = deployment.child(store, pinned.deployment, target, "second")
        assert held.files == pinned.deployment.files
        assert (child.description.agent, child.workflow, held.target) == ("Other", "second", "agents.py:Other")
        assert child.digest != pinned.digest
    refuse: list[Callable[[], Any]] = [
        lambda: deployment.child(store, pinned.deployment, "unrelated:X", ""),
        lambda: deployment.child(store, pinned.deployment, "agents:Missing", ""),
        lambda: deployment.child(store, pinned.deployment, "agents:Other", ""),
    ]
    for call in refuse:
        with pytest.raises(UsageError):
            call()
