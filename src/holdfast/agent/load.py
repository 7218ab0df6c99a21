"""The author's code: from a target to its class, with errors that name file and line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType, TracebackType

from holdfast.errors import UsageError

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
MAX_TRACE = 8192
"""Characters of a trace."""


def load_target(root: str, target: str) -> object:
    """The object behind ``module:Class`` or ``relative/file.py:Class`` below ``root``, the first of ``sys.path``.

    Raises:
        UsageError: it cannot be imported, or is not there; names file and line.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"the target {target!r} is no path/to/file.py:Class or package.module:Class")
    sys.path.insert(0, root)
    module = _import(root, place, target)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            held = ", ".join(sorted(n for n, v in vars(module).items() if hasattr(v, "__holdfast_agent__")))
            raise UsageError(f"{place} has no {name}" + (f"; it has the agents {held}" if held else ""))
        found = getattr(found, part)
    return found


def _import(root: str, place: str, target: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = os.path.join(root, place)
        if not os.path.isfile(path):
            raise UsageError(f"there is no file {place} for the target {target}")
        folder = os.path.dirname(path)
        if os.path.realpath(folder) != os.path.realpath(root):
            # As Python does with a script: modules beside the file can be imported by their bare names.
            sys.path.insert(1, folder)
        stem = os.path.basename(place)[: -len(".py")]
        taken = stem in sys.modules or stem in sys.stdlib_module_names or not stem.isidentifier()
        spec = importlib.util.spec_from_file_location(f"holdfast_target_{stem}" if taken else stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__holdfast_target__"] = place
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except SyntaxError as error:
        where = _short(error.filename or place, root)
        raise UsageError(f"{where}:{error.lineno}: {error.msg}") from error
    except BaseException as error:
        where = _where(error.__traceback__, root) or place
        raise UsageError(f"{where}: importing {place} raised {type(error).__name__}: {error}") from error


def _short(path: str, root: str) -> str:
    base = root.rstrip("/") + "/"
    return path[len(base) :] if path.startswith(base) else path


def _where(trace: TracebackType | None, root: str) -> str:
    """File and line of the innermost frame of the author's code."""
    found = ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if path.startswith(root.rstrip("/") + "/"):
            found = f"{_short(path, root)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def trace_of(error: BaseException, root: str) -> str:
    """Files, lines and functions of an exception and its causes, without values or source text; bounded.

    Holdfast's own frames are left out: they say nothing about the author's code.
    """
    lines: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(lines) < 200:
        seen.add(id(link))
        lines.append(type(link).__name__)
        trace = link.__traceback__
        while trace is not None and len(lines) < 200:
            code = trace.tb_frame.f_code
            if code.co_filename.startswith(_OWN):
                trace = trace.tb_next
                continue
            lines.append(f"  {_short(code.co_filename, root)}:{trace.tb_lineno} in {code.co_qualname}")
            trace = trace.tb_next
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(lines)[:MAX_TRACE].encode("utf-8", "replace").decode()
