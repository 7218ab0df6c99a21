"""Writes the reference pages from the code: ``python -m holdfast.cli.reference FOLDER``.

With ``--check`` nothing is written; the exit status is 1 when a page differs from what would be written.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast import config, errors
from holdfast import settings_kinds as kinds
from holdfast.cli import exits
from holdfast.cli.reference_events import events

GENERATED = "<!-- Written by `make docs` from the code. Change the code, not this page. -->\n"


def commands() -> str:
    """Every command with its arguments and options, and the exit statuses."""
    import typer

    from holdfast.cli.main import app

    lines = ["# Commands", "", GENERATED]
    for path, command in _walk(typer.main.get_command(app), "holdfast"):
        lines += _command(path, command)
    lines += ["## Exit statuses", "", "| status | meaning |", "| --- | --- |"]
    lines += [f"| {status} | {meaning} |" for status, meaning in exits.MEANING.items()]
    lines += [
        "",
        "`runs show` leaves with 0 whatever the run's status is; `run` and `runs resume` leave with",
    ]
    lines += ["the run's. With `--json` the last line of stdout is one JSON object, after an error too:"]
    lines += ['`{"error": "…", "code": "…"}`. Times in JSON are RFC 3339 in UTC.', ""]
    return "\n".join(lines)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in sorted(children.items()):
        yield from _walk(child, f"{path} {name}")


def _command(path: str, command: Any) -> list[str]:
    arguments, options = [], []
    for param in command.params:
        if param.param_type_name == "argument":
            name = (param.metavar or param.name).strip("[]").upper()
            arguments.append((name if param.required else f"[{name}]", param.help or ""))
        elif param.name != "help":
            options.append(param)
    usage = " ".join([path, *(name for name, _ in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## `{path}`", "", inspect.cleandoc(command.help or ""), "", f"    {usage}", ""]
    rows = [(name, text) for name, text in arguments if text]
    for option in options:
        value = "" if option.is_flag else f" {option.metavar or option.name.strip('_').upper()}"
        need = " Required." if option.required else ""
        shown = option.default not in (None, "", False, [], ()) and not callable(option.default) and not option.required
        default = f" Default: `{option.default}`." if shown else ""
        rows.append((f"`{', '.join(option.opts)}{value}`".replace("|", "\\|"), f"{option.help or ''}{need}{default}"))
    if rows:
        lines += ["| option | meaning |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows), ""]
    return lines


def configuration() -> str:
    """Every section and key of ``holdfast.toml``, and every variable."""
    lines = ["# Configuration", "", GENERATED]
    lines += [inspect.cleandoc(config.__doc__ or "").partition("\n\n")[2].replace("``", "`"), ""]
    for section, kind in (*config.PLAIN.items(), *config.NAMED.items()):
        lines += _section(f"{section}.NAME" if section in config.NAMED else section, kind, section in config.PLAIN)
    lines += ["## Variables that are no setting", "", "| variable | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in config.OWN_VARIABLES.items()]
    lines += ["", f"Durations: {_units(kinds.UNITS)}. Sizes: {_units(kinds.SIZES)}.", ""]
    return "\n".join(lines)


def _section(path: str, kind: type[config.Section], with_variables: bool) -> list[str]:
    lines = [f"## [{path}]", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    specs = kinds.fields(kind).values()
    plain = [spec for spec in specs if spec.kind.item is None]
    if plain:
        lines += ["| key | written as | default | meaning | variable |", "| --- | --- | --- | --- | --- |"]
    for spec in plain:
        known = spec.default not in (None, "", ())
        default = "required" if spec.required else f"`{spec.kind.write(spec.default)}`" if known else ""
        variable = f"`HOLDFAST_{path}_{spec.key}`".upper() if with_variables and spec.kind.parse_text else ""
        lines.append(f"| `{spec.key}` | {spec.kind.word} | {default} | {spec.help} | {variable} |")
    if plain:
        lines.append("")
    for spec in specs:
        if spec.kind.item is not None:
            lines += _section(f"{path}.{spec.key}.NAME", spec.kind.item, False)  # type: ignore[arg-type]
    return lines


def _units(units: dict[str, int]) -> str:
    return ", ".join(f"`{unit}`" for unit in units)


def error_page() -> str:
    """Every error's code, exit status and meaning."""
    lines = ["# Errors", "", GENERATED]
    lines += ["Every error is one line on stderr: what happened and what to do about it. `code` is stable.", ""]
    lines += ["| code | exit status | class | meaning |", "| --- | --- | --- | --- |"]
    for kind in error_classes():
        words = " ".join(inspect.cleandoc(kind.__doc__ or "").replace("``", "`").split())
        lines.append(f"| `{kind.code}` | {kind.exit_status} | `{kind.__name__}` | {words} |")
    lines += ["", "An author catches them by class: `from holdfast import DeniedError`, for one.", ""]
    return "\n".join(lines)


def error_classes() -> list[type[errors.HoldfastError]]:
    """Every class of :mod:`holdfast.errors`, in its order."""
    members = vars(errors).values()
    return [kind for kind in members if isinstance(kind, type) and issubclass(kind, errors.HoldfastError)]


def policies() -> str:
    """The format of policy files and every category, with its parameters and an example."""
    from holdfast.policy.reference import render

    title, _, rest = render().partition("\n")
    return f"{title}\n\n{GENERATED}{rest}"


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "configuration.md": configuration,
    "errors.md": error_page,
    "events.md": lambda: events(GENERATED),
    "policies.md": policies,
}


def main(args: list[str]) -> int:
    """Write or check the pages of a folder."""
    folder = Path(next(arg for arg in args if not arg.startswith("-")))
    stale = []
    for name, make in PAGES.items():
        path, text = folder / name, make()
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in args:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    if stale and "--check" in args:
        print(f"not current: {', '.join(stale)}; run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
