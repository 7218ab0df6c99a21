"""The CEL engine: found, loaded when it is first needed, and what it refuses in words of our own."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import Any


class ConditionError(ValueError):
    """The expression cannot be used; says why and what to write instead."""


def engine() -> Any:
    """The engine's extension module. Its package also imports a terminal interface, which takes 0.3 s to load."""
    if (loaded := sys.modules.get("cel.cel")) is not None:
        return loaded
    package = importlib.util.find_spec("cel")
    places = package.submodule_search_locations if package is not None else None
    spec = importlib.machinery.PathFinder.find_spec("cel.cel", places)
    if spec is None or spec.loader is None:
        raise ConditionError(
            "conditions need the package common-expression-language; install holdfast with its dependencies"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["cel.cel"] = module
    return module


def compiled(source: str) -> Any:
    try:
        return engine().compile(source)
    except Exception as error:  # noqa: BLE001 - any refusal by the engine is the expression's fault
        lines = [line.strip() for line in str(error).splitlines()]
        detail = next((line for line in lines if line.startswith("ERROR")), lines[0] if lines else "")
        raise ConditionError(f"the condition is not CEL: {detail.removeprefix('ERROR: <input>:')[:120]}") from None
