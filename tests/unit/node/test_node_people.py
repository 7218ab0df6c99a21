"""People as the settings have them, read again when those change."""

from __future__ import annotations

from pathlib import Path

from holdfast import config
from holdfast.node.people import NOBODY, People


def write(folder: Path, text: str) -> None:
    new = folder / "new"
    new.write_text(text)
    new.replace(folder / config.FILE)


def test_people_are_read_again_when_the_settings_change(tmp_path: Path) -> None:
    write(tmp_path, '[principals.anna]\nmay = ["tool:*"]\n')
    people = People(config.load(tmp_path / "home", cwd=tmp_path))
    assert people.of("anna").may == ("tool:*",)
    assert people.of("bo") is NOBODY
    write(tmp_path, '[principals."agent:clerk"]\nsuspended = true\n')
    assert people.of("agent:clerk").suspended
    assert people.of("anna") is NOBODY


def test_settings_that_cannot_be_read_leave_what_was_known(tmp_path: Path) -> None:
    write(tmp_path, "[principals.anna]\nsuspended = true\n")
    people = People(config.load(tmp_path / "home", cwd=tmp_path))
    for text in ("[principals.anna", "[principals.anna]\nsuspended = 3\n"):
        write(tmp_path, text)
        assert people.of("anna").suspended
    write(tmp_path, "[principals.anna]\nmay = []\n")
    assert not people.of("anna").suspended


def test_without_settings_nobody_is_known(tmp_path: Path) -> None:
    assert People(config.load(tmp_path / "home", cwd=tmp_path)).of("anna") is NOBODY
