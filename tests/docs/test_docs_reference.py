"""The reference is what the code says, everything is in it, and every link leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from holdfast import config
from holdfast import settings_kinds as kinds
from holdfast.cli import exits, reference
from holdfast.journal.event import Kind
from holdfast.policy import model, source, trial
from holdfast.policy.categories import CATEGORIES

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_page_is_current(name: str) -> None:
    assert (REFERENCE / name).read_text("utf-8") == reference.PAGES[name](), "run make docs"


def test_the_check_tells_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(tmp_path)]) == 0
    assert reference.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "errors.md").write_text("old")
    assert reference.main([str(tmp_path), "--check"]) == 1
    assert "errors.md" in capsys.readouterr().err
    assert (tmp_path / "errors.md").read_text() == "old"


def test_everything_is_documented() -> None:
    pages = {name: (REFERENCE / name).read_text("utf-8") for name in reference.PAGES}
    for kind in reference.error_classes():
        assert f"| `{kind.code}` | {kind.exit_status} |" in pages["errors.md"]
    for section, struct in {**config.PLAIN, **config.NAMED}.items():
        assert f"## [{section}" in pages["configuration.md"]
        for key in kinds.fields(struct):
            assert f"`{key}`" in pages["configuration.md"] or f".{key}." in pages["configuration.md"]
    for name in (*config.variables(), *config.OWN_VARIABLES):
        assert f"`{name}`" in pages["configuration.md"]
    for event in Kind:
        assert f"| `{event}` |" in pages["events.md"]
    for category in CATEGORIES:
        assert f"## {category}\n" in pages["policies.md"]
    for status in exits.MEANING:
        assert f"| {status} |" in pages["commands.md"]


def test_nothing_is_documented_twice_with_two_meanings() -> None:
    headings = re.findall(r"^## (.*)$", (REFERENCE / "commands.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert len(headings) > 25


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_a_categorys_example_is_a_policy(category: str) -> None:
    text = "version: 1\npolicies:\n" + "".join(
        ("  - " if at == 0 else "    ") + line + "\n"
        for at, line in enumerate(CATEGORIES[category].example.strip().splitlines())
    )
    checked, problems = model.examine(source.parse(text.encode(), "example"))
    assert not problems
    assert [item.policy.category for item in checked] == [category]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda path: path.name)
def test_what_the_how_tos_show_is_accepted(path: Path, tmp_path: Path) -> None:
    for text in blocks(path, "yaml"):
        if "\ntests:" in text:
            tests = tmp_path / "tests.yaml"
            tests.write_text(text)
            assert trial.suite(tests).tests
            continue
        assert model.examine(source.parse(text.encode(), path.name))[1] == []
    for text in blocks(path, "toml"):
        assert tomllib.loads(text)
        config.parse(text, path, {})
    for text in blocks(path, "python"):
        compile(text, path.name, "exec")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_no_page_names_a_command_that_is_not_there() -> None:
    known = {heading.split()[1] for heading in re.findall(r"^## `(holdfast [^`]+)`$", _commands(), re.MULTILINE)}
    for path in PAGES:
        for word in re.findall(r"^(?: {4}|)holdfast ([a-z]+)", path.read_text("utf-8"), re.MULTILINE):
            assert word in known, f"{path.name}: holdfast {word}"


def _commands() -> str:
    return (REFERENCE / "commands.md").read_text("utf-8")
