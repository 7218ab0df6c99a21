"""What would be run: SQL, shell commands, Python. Parsed, and refused where it cannot be."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, fits_any
from holdfast.policy.shell import Command, Line, Unreadable, of, parse

_REFUSALS = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_MAX_SOURCE = 200_000


def _arguments(args: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        if name in args:
            yield args[name]


Statement = Literal[
    "select", "insert", "update", "delete", "merge", "create", "alter", "drop", "truncate", "call", "set"
]


class SqlGuardParams(Params):
    """Parameters of sql_guard."""

    dialect: Annotated[str, StringConstraints(pattern="^[a-z0-9]{0,32}$")] = Field(
        default="postgres", description="dialect of sqlglot, such as postgres, mysql, sqlite, tsql, snowflake"
    )
    statements: tuple[Statement, ...] = Field(default=("select",), description="kinds of statement that may run")
    tables: tuple[Pattern, ...] = Field(
        default=("*",), description="tables or patterns that may be touched, as `table` or `schema.table`"
    )
    deny_tables: tuple[Pattern, ...] = Field(
        default=("pg_*", "information_schema.*", "pg_catalog.*", "mysql.*", "sys.*", "sqlite_*"),
        description="tables or patterns that may not; they win",
    )
    functions: tuple[Pattern, ...] = Field(
        default=(
            "pg_read_*", "pg_ls_*", "pg_sleep*", "pg_terminate_*", "pg_write_*", "lo_import", "lo_export", "dblink*",
            "load_file", "sleep", "benchmark", "xp_*", "sp_oa*", "sys_exec", "sys_eval", "load_extension", "readfile",
            "writefile", "query_to_xml*", "set_config", "current_setting",
        ),
        description="functions or patterns that may not be called",
    )  # fmt: skip
    require_where: bool = Field(
        default=True, description="whether UPDATE and DELETE need a condition that looks at data"
    )
    max_rows: int | None = Field(
        default=None, ge=1, le=10_000_000, description="each SELECT needs a LIMIT of at most this; left out: none"
    )
    arguments: tuple[Name, ...] = Field(
        default=("sql", "query", "statement"), min_length=1, description="arguments of tools that hold SQL"
    )


class SqlGuard(Category):
    """SQL by its syntax tree."""

    name = "sql_guard"
    family = "code"
    summary = (
        "Parses SQL and lets only one statement of a listed kind on listed tables run; refuses what does not parse."
    )
    params = SqlGuardParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("pci-dss:6.2.4", "pci-dss:7.2.6", "soc2:CC6.3", "sox:ITGC-access")
    example = """\
id: read-the-ledger
category: sql_guard
with: {statements: [select], tables: [ledger, "reports.*"], max_rows: 1000}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Parse each argument that holds SQL."""
        for text in _arguments(action.args, rule.params.arguments):
            why = _sql(text, rule.params) if isinstance(text, str) else "is no text"
            if why:
                return Breach(reason=f"the statement {why}", facts={"why": why})
        return None


def _sql(text: str, params: SqlGuardParams) -> str:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    # It would log what it cannot parse, and a statement holds data.
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL + 1)
    if len(text) > _MAX_SOURCE:
        return f"is longer than {_MAX_SOURCE} characters"
    if "/*!" in text or "/*M!" in text:
        return "hides code in a comment"
    try:
        trees = [tree for tree in sqlglot.parse(text, dialect=params.dialect or None) if tree is not None]
    except (SqlglotError, RecursionError, ValueError):
        return "does not parse"
    if len(trees) != 1:
        return f"is {len(trees)} statements"
    tree = trees[0]
    for node in tree.walk():
        kind = _statement(node, root=node is tree)
        if kind and kind not in params.statements:
            return f"is {kind.upper()}"
        if isinstance(node, exp.Table):
            name = ".".join(part.lower() for part in (node.db, node.name) if part)
            if not node.db and _common(node, name):
                continue
            if fits_any(params.deny_tables, name) or not _listed(name, params.tables):
                return f"touches {name[:64] or 'something without a name'}"
        elif isinstance(node, exp.Func):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            if fits_any(params.functions, name):
                return f"calls {name[:64]}"
        elif isinstance(node, exp.Into):
            return "writes what it selects"
        if params.require_where and isinstance(node, exp.Update | exp.Delete) and not _looks(node):
            return "changes every row"
    if params.max_rows is not None and isinstance(tree, exp.Query) and not _limited(tree, params.max_rows):
        return f"has no LIMIT of at most {params.max_rows}"
    return ""


def _common(table: Any, name: str) -> bool:
    """Whether a name means a common table expression where it stands, and not the table of that name."""
    from sqlglot import exp

    inside, node = None, table
    while node is not None:
        if isinstance(node, exp.CTE):
            inside = node
        clause = next((part for part in node.args.values() if isinstance(part, exp.With)), None)
        if clause is not None:
            for common in clause.expressions:
                # Within its own definition, and in those before it, the name is not known yet.
                if common is inside and not clause.args.get("recursive"):
                    break
                if common.alias_or_name.lower() == name:
                    return True
        if isinstance(node, exp.Query) and clause is not None:
            inside = None
        node = node.parent
    return False


def _listed(name: str, patterns: tuple[str, ...]) -> bool:
    return fits_any(patterns, name)


def _statement(node: Any, *, root: bool) -> str:
    from sqlglot import exp

    kinds: tuple[tuple[Any, str], ...] = (
        (exp.Insert, "insert"),
        (exp.Update, "update"),
        (exp.Delete, "delete"),
        (exp.Merge, "merge"),
        (exp.Create, "create"),
        (exp.Alter, "alter"),
        (exp.Drop, "drop"),
        (exp.TruncateTable, "truncate"),
        (exp.Set, "set"),
    )
    for kind, name in kinds:
        if isinstance(node, kind):
            return "" if name == "update" and not root and not node.args.get("expressions") else name
    if not root:
        return ""
    if isinstance(node, exp.Query):
        return "select"
    return "call" if type(node).__name__ in ("Execute", "Call") else f"a {type(node).__name__}"


def _looks(node: Any) -> bool:
    from sqlglot import exp

    where = node.args.get("where")
    return where is not None and where.find(exp.Column) is not None and not _always(where.this)


def _always(condition: Any) -> bool:
    """Whether a condition holds whatever the data: a true constant beside an OR, or something compared with itself."""
    from sqlglot import exp

    if isinstance(condition, exp.Paren):
        return _always(condition.this)
    if isinstance(condition, exp.Or):
        return _always(condition.left) or _always(condition.right)
    if isinstance(condition, exp.And):
        return _always(condition.left) and _always(condition.right)
    if isinstance(condition, exp.EQ | exp.GTE | exp.LTE):
        return bool(condition.left == condition.right)
    if isinstance(condition, exp.Boolean):
        return bool(condition.this)
    return condition.find(exp.Column) is None


def _limited(tree: Any, most: int) -> bool:
    limit = tree.args.get("limit")
    value = limit.args.get("expression") or limit.args.get("count") if limit is not None else None
    try:
        return value is not None and 0 <= int(value.name) <= most
    except ValueError:
        return False


class ShellGuardParams(Params):
    """Parameters of shell_guard."""

    allow: tuple[Pattern, ...] = Field(
        description="programs or patterns that may run, by name; also within `sh -c`, `env`, `xargs`, `find -exec`"
    )
    deny: tuple[Pattern, ...] = Field(
        default=("sudo", "doas", "su", "chroot", "eval", "source", "."), description="programs that may not; they win"
    )
    deny_arguments: tuple[Pattern, ...] = Field(
        default=("/etc/*", "*/.ssh/*", "*/.aws/*", "*.pem", "/dev/tcp/*", "--checkpoint-action*", "--rsh=*"),
        description="arguments or patterns that no program may get",
    )
    pipes: bool = Field(default=True, description="whether programs may be joined by pipes")
    chains: bool = Field(default=False, description="whether several commands may follow each other")
    redirects: bool = Field(default=False, description="whether output may go to files")
    arguments: tuple[Name, ...] = Field(
        default=("command", "cmd", "argv", "shell"), min_length=1, description="arguments of tools that hold commands"
    )


class ShellGuard(Category):
    """Commands by the programs that they start."""

    name = "shell_guard"
    family = "code"
    summary = (
        "Takes commands apart and lets only listed programs run; refuses expansions and whatever is not understood."
    )
    params = ShellGuardParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("pci-dss:6.2.4", "pci-dss:2.2.4", "soc2:CC6.8")
    example = """\
id: look-but-do-not-touch
category: shell_guard
with: {allow: [ls, cat, grep, wc, git]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Take each argument that holds a command apart."""
        for value in _arguments(action.args, rule.params.arguments):
            why = _shell(value, rule.params)
            if why:
                return Breach(reason=f"the command {why}", facts={"why": why})
        return None


def _shell(value: Any, params: ShellGuardParams) -> str:
    try:
        if isinstance(value, str) and len(value) <= _MAX_SOURCE:
            line = parse(value)
        elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            line = of(value)
        else:
            return "is neither text nor a list of texts"
    except (Unreadable, RecursionError) as error:
        return f"is not understood: {error}"
    return _line(line, params)


def _line(line: Line, params: ShellGuardParams) -> str:
    if not line.commands:
        return "starts no program"
    if line.piped and not params.pipes:
        return "has a pipe"
    if line.background or (line.chained and not params.chains):
        return "is several commands"
    for command in line.commands:
        why = _command(command, params)
        if why:
            return why
    return ""


def _command(command: Command, params: ShellGuardParams) -> str:
    program = command.program
    if fits_any(params.deny, program):
        return f"starts {program[:64]}, which is denied"
    if not fits_any(params.allow, program):
        return f"starts {program[:64]}, which is not on the list"
    if (
        command.writes
        and not params.redirects
        and any(not one.isdigit() and one != "/dev/null" for one in command.writes)
    ):
        return "writes to a file"
    for word in (*command.argv[1:], *command.writes, *command.reads):
        _, _, after = word.partition("=")
        if fits_any(params.deny_arguments, word) or (after and fits_any(params.deny_arguments, after)):
            return f"gives {program[:64]} an argument that is denied"
    return ""


class CodeSandboxParams(Params):
    """Parameters of code_sandbox."""

    imports: tuple[Pattern, ...] = Field(
        default=("math", "statistics", "decimal", "datetime", "json", "re", "itertools", "collections", "functools"),
        description="modules or patterns that may be imported",
    )
    calls: tuple[Pattern, ...] = Field(
        default=(
            "eval", "exec", "compile", "__import__", "open", "input", "breakpoint", "globals", "locals", "vars",
            "getattr", "setattr", "delattr", "memoryview", "exit", "quit",
        ),
        description="built-in functions or patterns that may not be used",
    )  # fmt: skip
    max_nodes: int = Field(default=5_000, ge=10, le=200_000, description="size of the syntax tree, at most")
    loops: bool = Field(default=True, description="whether `while` may be used")
    arguments: tuple[Name, ...] = Field(
        default=("code", "python", "source"), min_length=1, description="arguments of tools that hold Python"
    )


class CodeSandbox(Category):
    """Python by its syntax tree. The boundary is the sandbox; this keeps honest code honest."""

    name = "code_sandbox"
    family = "code"
    summary = (
        "Parses Python and refuses imports that are not listed, reflection and names that lead to the interpreter."
    )
    params = CodeSandboxParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("pci-dss:6.2.4", "soc2:CC6.8")
    example = """\
id: only-arithmetic
category: code_sandbox
with: {imports: [math, statistics], loops: false}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Parse each argument that holds Python."""
        for text in _arguments(action.args, rule.params.arguments):
            why = _python(text, rule.params) if isinstance(text, str) else "is no text"
            if why:
                return Breach(reason=f"the code {why}", facts={"why": why})
        return None


def _python(text: str, params: CodeSandboxParams) -> str:
    if len(text) > _MAX_SOURCE:
        return f"is longer than {_MAX_SOURCE} characters"
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "does not parse"
    for count, node in enumerate(ast.walk(tree), 1):
        if count > params.max_nodes:
            return f"has more than {params.max_nodes} nodes"
        why = _node(node, params)
        if why:
            return why
    return ""


def _node(node: ast.AST, params: CodeSandboxParams) -> str:
    if isinstance(node, ast.Import):
        for item in node.names:
            if not fits_any(params.imports, item.name):
                return f"imports {item.name[:64]}"
    elif isinstance(node, ast.ImportFrom):
        if node.level or not node.module or node.names[0].name == "*" or not fits_any(params.imports, node.module):
            return f"imports {(node.module or 'from its own package')[:64]}"
    elif isinstance(node, ast.Name):
        if fits_any(params.calls, node.id) or (node.id.startswith("__") and node.id != "__name__"):
            return f"uses {node.id[:64]}"
    elif isinstance(node, ast.Attribute):
        # Frames, code objects and everything with two underscores lead to the interpreter.
        if node.attr.startswith("_") or node.attr in _INNER:
            return f"reaches for .{node.attr[:64]}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if "__" in node.value and any(f"__{word}__" in node.value for word in _DUNDERS):
            return "names something with two underscores"
    elif isinstance(node, ast.While) and not params.loops:
        return "has a while loop"
    elif isinstance(node, ast.MatchClass) and any(name.startswith("_") for name in node.kwd_attrs):
        return "matches on something with two underscores"
    return ""


_INNER = frozenset(
    {"f_globals", "f_locals", "f_builtins", "f_back", "f_code", "gi_frame", "gi_code", "cr_frame", "cr_code",
     "ag_frame", "tb_frame", "tb_next", "co_code", "func_globals", "format_map", "mro", "modules",
     # modules that others carry along
     "os", "sys", "subprocess", "builtins", "importlib", "socket", "shutil", "ctypes", "pickle", "marshal", "posix",
     "io", "codecs", "threading", "inspect", "gc", "signal"}
)  # fmt: skip
_DUNDERS = (
    "class",
    "globals",
    "subclasses",
    "import",
    "builtins",
    "bases",
    "base",
    "mro",
    "init",
    "dict",
    "code",
    "getattribute",
)
