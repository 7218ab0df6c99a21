"""The arrows between the rooms, held by reading every module's imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "holdfast"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"settings_kinds"}),
    frozenset({"action", "values", "config", "clock", "log"}),
    frozenset({"sandbox", "wire"}),
    frozenset({"agent", "journal"}),
    frozenset({"policy"}),
    frozenset({"gate", "audit"}),
    frozenset({"llm", "session", "egress", "observe"}),
    frozenset({"node", "connect"}),
    frozenset({"server"}),
    frozenset({"cli"}),
    frozenset({"testing"}),
)
"""Lowest first. A room imports rooms of lower layers, and of its own layer as long as there is no circle."""
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

INSIDE = frozenset({"agent", "wire", "values", "errors"})
"""What may run inside a boundary."""
HEAVY = frozenset(
    {"typer", "rich", "pydantic", "sqlalchemy", "alembic", "httpx", "uvloop", "structlog", "cryptography"}
)
MAX_LINES = 500


def modules() -> list[Path]:
    """Every module of the package but migrations, which are scripts of another tool."""
    return sorted(
        path for path in SOURCE.rglob("*.py") if "migrations" not in path.parts and "examples" not in path.parts
    )


def room_of(path: Path) -> str:
    """The room of a module: the first folder below the package, or the module itself."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    parts = ["holdfast", *path.relative_to(SOURCE).with_suffix("").parts]
    return parts[:-1]


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Dotted names that a module imports; with ``at_import`` only those that importing it runs."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_of(path)[: len(package_of(path)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        if at_import and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            continue
        stack.extend(ast.iter_child_nodes(node))
    return found


def rooms(names: set[str]) -> set[str]:
    """The rooms among dotted names."""
    return {name.split(".")[1] for name in names if name.startswith("holdfast.")} & set(RANK)


def arrows() -> dict[str, set[str]]:
    """Room to the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in modules():
        if (room := room_of(path)) != "__init__":
            found.setdefault(room, set()).update(rooms(imports(path)) - {room})
    return found


def test_every_room_has_its_place() -> None:
    known = {*RANK, "__init__", "__main__"}
    assert {room_of(path) for path in modules()} <= known


def test_arrows_point_down() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in modules()
        if (room := room_of(path)) in RANK
        for other in rooms(imports(path)) - {room, "testing"}  # see the test of who may import that
        if RANK[other] > RANK[room]
    ]
    assert not wrong


def test_rooms_form_no_circle() -> None:
    graph = arrows()
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join([*path, room])
        if room not in done:
            for other in sorted(graph.get(room, ())):
                visit(other, (*path, room))
            done.add(room)

    for room in sorted(graph):
        visit(room, ())


def test_what_runs_inside_imports_nothing_of_the_nodes() -> None:
    for path in modules():
        if room_of(path) in INSIDE:
            names = imports(path)
            assert rooms(names) <= INSIDE, path
            assert not {name.split(".")[0] for name in names} & HEAVY, path


def test_nothing_imports_testing_or_the_other_name() -> None:
    for path in modules():
        if room_of(path) != "testing":
            names = imports(path)
            assert "waxell_sdk" not in {name.split(".")[0] for name in names}, path
            allowed = {"cli"}  # the demo starts the scripted model server
            assert room_of(path) in allowed or "testing" not in rooms(names), path


def test_settings_stand_on_errors_alone() -> None:
    assert rooms(imports(SOURCE / "config.py")) <= {"errors", "settings_kinds"}


@pytest.mark.parametrize("heavy", ["sqlalchemy", "alembic", "httpx", "pydantic", "genai_prices"])
def test_what_starts_slowly_is_imported_when_it_is_used(heavy: str) -> None:
    for path in modules():
        if room_of(path) in {"cli", "config", "journal", "node", "__init__", "__main__"} and "schema" not in path.stem:
            names = {name.split(".")[0] for name in imports(path, at_import=True)}
            assert heavy not in names, f"{path.relative_to(SOURCE)} imports {heavy} at its top"


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(SOURCE)): count
        for path in modules()
        if (count := len(path.read_text("utf-8").splitlines())) >= MAX_LINES
    }
    assert not long
