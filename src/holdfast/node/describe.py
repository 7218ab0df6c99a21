"""What a class says of itself, read from its source and never by running it.

The node decides under an agent's name before the author's code may run, so the name is taken from the decorator's
literal, not from anything that the inside claims.
"""

from __future__ import annotations

import ast

import msgspec

from holdfast.errors import UsageError


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """An agent class."""

    agent: str
    workflows: tuple[str, ...]


def describe(source: bytes, class_name: str, where: str) -> Description:
    """Find ``class_name`` in a module's source.

    Raises:
        UsageError: no such class, not an agent, no workflow, or a name that is not a literal; says the cure.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UsageError(f"{where}{f':{line}' if line else ''}: not Python: {getattr(error, 'msg', error)}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = classes.get(class_name)
    if found is None:
        agents = sorted(name for name, node in classes.items() if _decorator(node, "agent") is not None)
        hint = f"; it has {', '.join(agents)}" if agents else "; it has no class with @agent"
        raise UsageError(f"{where} has no class {class_name}{hint}")
    decorator = _decorator(found, "agent")
    if decorator is None:
        raise UsageError(f"{where}: class {class_name} is not an agent; put @agent(name=...) above it")
    workflows = _workflows(found, classes, where)
    if not workflows:
        raise UsageError(f"{where}: class {class_name} has no workflow; put @workflow above the method that starts it")
    return Description(agent=_name(decorator, class_name, where), workflows=tuple(workflows))


def choose(description: Description, workflow: str, where: str) -> str:
    """The workflow to run: the one that is named, or the only one.

    Raises:
        UsageError: there is no such workflow, or several and none was named.
    """
    names = ", ".join(description.workflows)
    if workflow:
        if workflow not in description.workflows:
            raise UsageError(f"{where} has no workflow {workflow}; it has {names}")
        return workflow
    if len(description.workflows) > 1:
        raise UsageError(f"{where} has several workflows; choose one with --workflow: {names}")
    return description.workflows[0]


def imports(source: bytes, package: str) -> set[str]:
    """Dotted names that a module's source imports, relative ones resolved against ``package``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                parts = parts[: len(parts) - (node.level - 1)] if node.level > 1 else parts
                base = ".".join([*parts, *([base] if base else [])])
            if base:
                found.add(base)
            found.update(f"{base}.{alias.name}".strip(".") for alias in node.names)
    return found


def _decorator(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> ast.expr | None:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if (isinstance(target, ast.Name) and target.id == name) or (
            isinstance(target, ast.Attribute) and target.attr == name
        ):
            return decorator
    return None


def _name(decorator: ast.expr, default: str, where: str) -> str:
    if not isinstance(decorator, ast.Call):
        return default
    given = [keyword.value for keyword in decorator.keywords if keyword.arg == "name"] or decorator.args[:1]
    if not given:
        return default
    value = given[0]
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value):
        raise UsageError(
            f"{where}:{decorator.lineno}: the agent's name must be a literal text, "
            "because policies need it before the code runs"
        )
    return value.value


def _workflows(node: ast.ClassDef, classes: dict[str, ast.ClassDef], where: str) -> list[str]:
    names: list[str] = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            decorator = _decorator(item, "workflow")
            if decorator is not None:
                names.append(_name(decorator, item.name, where))
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            names += [name for name in _workflows(classes[base.id], classes, where) if name not in names]
    return names
