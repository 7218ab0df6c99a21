"""Settings: ``holdfast.toml`` and ``HOLDFAST_*`` variables, each value with where it came from.

The file is looked for in the working directory, then in the home. A variable ``HOLDFAST_SECTION_KEY``
overrides the key of a section. Paths in the file count from the file's folder. Whatever is unknown or of the
wrong type is refused: a setting that is quietly ignored is a rule that is quietly off.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from holdfast import settings_kinds as kinds
from holdfast.errors import ConfigError

FILE = "holdfast.toml"
HOME = "HOLDFAST_HOME"
OWN_VARIABLES = {
    HOME: "Folder of the state; `./.holdfast` when not set.",
    "HOLDFAST_PRINCIPAL_TOKEN": "Secret of the principal that `--as NAME` names.",
    "HOLDFAST_MASTER_KEY": "Master key: 32 bytes in base64, `file:PATH`, `keyring:NAME` or `vault:MOUNT/KEY`; "
    "`master.key` in the home when not set.",
    "HOLDFAST_DEBUG": "`1`: show the traceback of an unexpected error.",
}
"""Variables that are no setting."""
INNER_VARIABLES = frozenset({"HOLDFAST_CHANNEL", "HOLDFAST_EGRESS", "HOLDFAST_RUN_ID"})
"""Variables that a worker finds inside its boundary."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the file. Each field's annotation carries how its value is written and what it means."""


class StoreSettings(Section, frozen=True, kw_only=True):
    """Where the journal is kept."""

    url: Annotated[str, kinds.TEXT, "`sqlite` (in the home) or `postgresql://user@host/database`"] = "sqlite"


class PriceSettings(Section, frozen=True, kw_only=True):
    """What a model costs, for one that the built-in price list does not know."""

    input: Annotated[int, kinds.PRICE, "US dollars per million input tokens"]
    output: Annotated[int, kinds.PRICE, "US dollars per million output tokens"]
    cache_read: Annotated[int, kinds.PRICE, "US dollars per million tokens read from the cache"] = 0
    cache_write: Annotated[int, kinds.PRICE, "US dollars per million tokens written to the cache"] = 0


class LLMSettings(Section, frozen=True, kw_only=True):
    """The model behind `ctx.llm`. The key stays with the node."""

    model: Annotated[str, kinds.TEXT, "model that is used when a call names none"] = ""
    provider: Annotated[
        str,
        kinds.choice("", "anthropic", "openai"),
        "wire protocol; empty: the one whose key is set",
    ] = ""
    base_url: Annotated[str, kinds.TEXT, "address of the provider; empty: its variable, then its own"] = ""
    api_key_env: Annotated[str, kinds.TEXT, "variable that holds the key; empty: the usual one"] = ""
    prices: Annotated[dict[str, PriceSettings], kinds.table(PriceSettings), "by model name"] = {}


class PolicySettings(Section, frozen=True, kw_only=True):
    """Which policies are in force."""

    files: Annotated[tuple[Path, ...], kinds.PATHS, "policy files, in order; none: the built-in bundle"] = ()
    require_signed: Annotated[bool, kinds.BOOLEAN, "refuse policy files that no trusted key has signed"] = False
    trusted_keys: Annotated[tuple[Path, ...], kinds.PATHS, "public keys that may sign policy files"] = ()


class ConnectorSettings(Section, frozen=True, kw_only=True):
    """A tool of the operator's, called by agents with `ctx.tool(NAME, …)`. One of call, url and mcp."""

    call: Annotated[str, kinds.TEXT, "`file.py:function`, path from this file's folder"] = ""
    url: Annotated[str, kinds.TEXT, "address of an HTTP endpoint; `{name}` in its path is an argument"] = ""
    method: Annotated[str, kinds.choice("GET", "POST", "PUT", "PATCH", "DELETE"), "method of the requests to `url`"] = (
        "POST"
    )
    schema: Annotated[Path | None, kinds.PATH, "JSON Schema that the arguments for `url` must fit"] = None
    mcp: Annotated[str, kinds.TEXT, "command or address of an MCP server"] = ""
    effect: Annotated[
        str,
        kinds.choice("pure", "idempotent", "compensable", "irreversible"),
        "what calling it twice means",
    ] = "irreversible"
    timeout: Annotated[int, kinds.DURATION, "how long one attempt may take"] = 60_000_000
    retries: Annotated[int, kinds.integer(0, 100), "attempts after a failed one"] = 0
    backoff: Annotated[int, kinds.DURATION, "pause before the next attempt; doubles each time"] = 1_000_000
    undo: Annotated[str, kinds.TEXT, "connector that undoes this one (compensable only)"] = ""
    labels: Annotated[
        tuple[str, ...] | None,
        kinds.LABELS,
        "what its results are labelled with, such as `private`; `[]`: they can be trusted; not set: `untrusted`",
    ] = None
    opaque: Annotated[
        bool, kinds.BOOLEAN, "whether the agent gets only a handle of its results, to hand on to other connectors"
    ] = False
    region: Annotated[str, kinds.TEXT, "where what it reaches stands; empty: nobody knows"] = ""
    folder: Path = Path()
    """Folder of the file that names it: its working directory."""


class EgressSettings(Section, frozen=True, kw_only=True):
    """What agents may reach."""

    allow_private: Annotated[
        tuple[str, ...],
        kinds.TEXTS,
        "`host:port` of private addresses that an agent may reach when a policy allows them too",
    ] = ()
    resolve: Annotated[
        tuple[str, ...], kinds.TEXTS, "`name=address`: where a name leads, instead of what DNS says"
    ] = ()
    roots: Annotated[tuple[Path, ...], kinds.PATHS, "PEM files of further authorities that may sign servers"] = ()
    passthrough: Annotated[
        tuple[str, ...],
        kinds.TEXTS,
        "hosts (`*` stands for any part) whose TLS is relayed unseen: no credentials, and the record says so",
    ] = ()
    idempotency: Annotated[
        tuple[str, ...],
        kinds.TEXTS,
        "hosts that heed `Idempotency-Key`: requests to them get one, and may be sent again after a crash",
    ] = ()
    dial: Annotated[int, kinds.DURATION, "how long connecting and sending a request may take"] = 5_000_000


class TenantSettings(Section, frozen=True, kw_only=True):
    """What belongs to one tenant. The top level is the default tenant's."""

    connectors: Annotated[dict[str, ConnectorSettings], kinds.table(ConnectorSettings), "by name"] = {}
    policies: Annotated[tuple[Path, ...], kinds.PATHS, "policy files that tighten the organisation's"] = ()
    egress: Annotated[EgressSettings, kinds.section(EgressSettings), "what its agents may reach"] = EgressSettings()


class AgentSettings(Section, frozen=True, kw_only=True):
    """What is set for one agent, by the name that its author gave it."""

    policies: Annotated[
        tuple[Path, ...], kinds.PATHS, "policy files that tighten the organisation's and the tenant's"
    ] = ()


class PrincipalSettings(Section, frozen=True, kw_only=True):
    """A person or service. `uid:N`: who runs the command as that user. Another name has a token."""

    roles: Annotated[tuple[str, ...], kinds.TEXTS, "roles that policies refer to as `role:NAME`"] = ()
    may: Annotated[
        tuple[str, ...] | None,
        kinds.TEXTS,
        "what agents may do on this one's behalf, as `GATE:NAME` with wildcards; not set: nobody knows",
    ] = None
    acts_for: Annotated[
        tuple[str, ...], kinds.TEXTS, "people, or patterns of names, for whom it may start runs beside itself"
    ] = ()
    suspended: Annotated[
        bool, kinds.BOOLEAN, "whether nothing may happen in this name now; for an agent write `agent:NAME`"
    ] = False
    token_sha256: Annotated[
        str,
        kinds.SHA256,
        "SHA-256 (hex) of the token in `HOLDFAST_PRINCIPAL_TOKEN`; not for `uid:N`",
    ] = ""


class SandboxSettings(Section, frozen=True, kw_only=True):
    """The boundary around each run."""

    level: Annotated[
        str,
        kinds.choice("namespace", "process", "landlock", "container", "gvisor", "microvm"),
        "isolation level of runs that ask for none",
    ] = "namespace"
    uid_range: Annotated[
        tuple[int, int] | None,
        kinds.UID_RANGE,
        "`[first, last]` host uids that boundaries may take (root only)",
    ] = None
    memory: Annotated[int, kinds.SIZE, "memory of one boundary"] = 1 << 30
    swap: Annotated[int, kinds.SIZE, "swap space of one boundary"] = 0
    pids: Annotated[int, kinds.integer(1, 1 << 22), "processes and threads in one boundary"] = 256
    cpu: Annotated[float | None, kinds.NUMBER, "cores of one boundary; not set: no limit"] = None
    disk: Annotated[int, kinds.SIZE, "size of the workspace"] = 1 << 30
    files: Annotated[int, kinds.integer(16, 1 << 20), "open files of one process"] = 1024
    file_size: Annotated[int, kinds.SIZE, "size of one file"] = 512 << 20
    pool: Annotated[
        int,
        kinds.integer(0, 1000),
        "boundaries that a serving node keeps ready for each agent that it has run; 0: none",
    ] = 0
    pool_memory: Annotated[
        int, kinds.SIZE, "memory that all boundaries without a run may use together, out of `[node] overhead`"
    ] = 64 << 20


class NodeSettings(Section, frozen=True, kw_only=True):
    """How a node drives runs."""

    grace: Annotated[int, kinds.DURATION, "how long the process of a waiting run is kept"] = 2_000_000
    lease: Annotated[int, kinds.DURATION, "how long a silent node elsewhere counts as alive"] = 10_000_000
    dial: Annotated[
        int, kinds.DURATION, "how long the start of a send may take: less than the lease, and waited for after it"
    ] = 5_000_000
    concurrency: Annotated[int, kinds.integer(1, 10_000), "boundaries that one node runs side by side"] = 64
    memory: Annotated[
        int | None, kinds.SIZE, "memory that this node may use; not set: the machine's, or its control group's"
    ] = None
    overhead: Annotated[int, kinds.SIZE, "of that, what is kept for the node itself and not given to runs"] = 256 << 20
    queue: Annotated[int, kinds.integer(1, 1 << 30), "new runs of one tenant that may wait; more are refused"] = 10_000
    max_value: Annotated[int, kinds.SIZE, "size of one recorded value"] = 8 << 20


class Settings(Section, frozen=True, kw_only=True):
    """All settings."""

    store: StoreSettings = StoreSettings()
    llm: LLMSettings = LLMSettings()
    policy: PolicySettings = PolicySettings()
    sandbox: SandboxSettings = SandboxSettings()
    node: NodeSettings = NodeSettings()
    egress: EgressSettings = EgressSettings()
    connectors: dict[str, ConnectorSettings] = {}
    tenants: dict[str, TenantSettings] = {}
    agents: dict[str, AgentSettings] = {}
    principals: dict[str, PrincipalSettings] = {}
    file: Path | None = None
    """The file that was read."""
    origins: dict[str, str] = {}
    """Dotted key to ``holdfast.toml:LINE`` or the variable's name; what is missing is the default."""

    def origin(self, key: str) -> str:
        """Where the value of a dotted key comes from."""
        return self.origins.get(key, "default")

    def connectors_of(self, tenant: str) -> dict[str, ConnectorSettings]:
        """Connectors of a tenant, by name. Nothing is shared: the top level is the default tenant's alone."""
        own = self.tenants.get(tenant, TenantSettings()).connectors
        return {**self.connectors, **own} if tenant == "default" else own

    def egress_of(self, tenant: str) -> EgressSettings:
        """What a tenant's agents may reach. The top level is the default tenant's alone."""
        return self.egress if tenant == "default" else self.tenants.get(tenant, TenantSettings()).egress


PLAIN: dict[str, type[Section]] = {
    "store": StoreSettings,
    "llm": LLMSettings,
    "policy": PolicySettings,
    "sandbox": SandboxSettings,
    "node": NodeSettings,
    "egress": EgressSettings,
}
"""Sections with one table, whose keys have variables too."""
NAMED: dict[str, type[Section]] = {
    "connectors": ConnectorSettings,
    "tenants": TenantSettings,
    "agents": AgentSettings,
    "principals": PrincipalSettings,
}
"""Sections with a table for each name."""


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the state: ``$HOLDFAST_HOME``, else ``./.holdfast``. Absolute; may not exist yet."""
    environ = os.environ if environ is None else environ
    return Path(environ.get(HOME) or ".holdfast").absolute()


def find_file(home: Path, cwd: Path | None = None) -> Path | None:
    """The settings file: the working directory's, else the home's; None when there is neither."""
    for folder in (cwd or Path.cwd(), home):
        if (path := folder / FILE).is_file():
            return path
    return None


def load(home: Path | None = None, *, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of a working directory and a home.

    Raises:
        ConfigError: the file, a key or a value cannot be used; names file, line, key and cure.
    """
    environ = os.environ if environ is None else environ
    path = find_file(home or home_folder(environ), cwd)
    if path is None:
        return parse("", None, environ)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; make it readable UTF-8, or remove it") from None
    return parse(text, path.absolute(), environ)


def parse(text: str, path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file's text and an environment. ``path`` names the file and anchors its paths.

    Raises:
        ConfigError: as :func:`load`.
    """
    name = str(path or FILE)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not TOML: {error}; correct the line") from None
    reader = kinds.Reader(text, name, path.parent if path else Path.cwd())
    values: dict[str, Any] = {}
    known = [*PLAIN, *NAMED]
    for section, table in raw.items():
        if section not in known:
            raise reader.error((section,), f"[{section}] is not a section", kinds.nearest(section, known))
        if section in PLAIN:
            values[section] = reader.struct(PLAIN[section], table, (section,))
        else:
            values[section] = reader.named(NAMED[section], table, (section,))
    origins = reader.origins
    for section, kind in PLAIN.items():
        values[section] = _override(section, kind, values.get(section, kind()), environ, origins)
    settings = Settings(**values, file=path, origins=origins)
    _check(settings, reader)
    return settings


def variables() -> dict[str, tuple[str, str]]:
    """Every variable that overrides a key: name to (section, key)."""
    found = {}
    for section, kind in PLAIN.items():
        for key, spec in kinds.fields(kind).items():
            if spec.kind.parse_text is not None:
                found[f"HOLDFAST_{section}_{key}".upper()] = (section, key)
    return found


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """``HOLDFAST_*`` variables that mean nothing: most likely misspelt."""
    known = {*variables(), *OWN_VARIABLES, *INNER_VARIABLES}
    return sorted(name for name in environ if name.startswith("HOLDFAST_") and name not in known)


def _override(
    section: str, kind: type[Section], value: Section, environ: Mapping[str, str], origins: dict[str, str]
) -> Section:
    prefix = f"HOLDFAST_{section}_".upper()
    changed: dict[str, Any] = {}
    specs = {key.upper(): (key, spec) for key, spec in kinds.fields(kind).items() if spec.kind.parse_text}
    for name, text in environ.items():
        if not name.startswith(prefix):
            continue
        if name[len(prefix) :] not in specs:
            cure = kinds.nearest(name, [prefix + key for key in specs])
            raise ConfigError(f"the variable {name} is not a setting; {cure}")
        key, spec = specs[name[len(prefix) :]]
        assert spec.kind.parse_text is not None
        try:
            changed[key] = spec.kind.parse_text(text, Path.cwd())
        except ValueError as error:
            raise ConfigError(f"the variable {name} is {error}") from None
        origins[f"{section}.{key}"] = name
    return msgspec.structs.replace(value, **changed) if changed else value


def _check(settings: Settings, reader: kinds.Reader) -> None:
    tables: list[tuple[tuple[str, ...], dict[str, ConnectorSettings]]] = [(("connectors",), settings.connectors)]
    for name, tenant in settings.tenants.items():
        tables.append((("tenants", name, "connectors"), tenant.connectors))
    for path, connectors in tables:
        for name, connector in connectors.items():
            if fault := _connector_fault(connector, connectors):
                key, what, cure = fault
                raise reader.error((*path, name, key) if key else (*path, name), what, cure)
    for name, principal in settings.principals.items():
        if flaw := _principal_fault(name, principal):
            raise reader.error(("principals", name), *flaw)


def _principal_fault(name: str, principal: PrincipalSettings) -> tuple[str, str] | None:
    if name.startswith("uid:"):
        if not name[4:].isdigit():
            return f"{name} is not a uid", 'write "uid:1000", with the number of the user'
        if principal.token_sha256:
            return f"{name} has a token", "remove it: a uid is proved by the system"
    elif not principal.token_sha256 and (principal.roles or (principal.may is None and not principal.suspended)):
        return f"{name} cannot prove who it is", "add token_sha256, or name a user as uid:N instead"
    return None


def _connector_fault(connector: ConnectorSettings, others: dict[str, ConnectorSettings]) -> tuple[str, str, str] | None:
    ways = [way for way in ("call", "url", "mcp") if getattr(connector, way)]
    undo, effect = connector.undo, connector.effect
    if len(ways) != 1:
        have = " and ".join(ways) or "none"
        return "", f"a connector needs exactly one of call, url and mcp and has {have}", "keep one"
    if connector.call and not _is_target(connector.call):
        return "call", f"{connector.call!r} is not file.py:function", "write file.py:function"
    if connector.url and not _is_endpoint(connector.url):
        return "url", f"{connector.url!r} is not http(s)://HOST/…", "write the host out; {name} may stand in the path"
    if undo and effect != "compensable":
        return "undo", f"a connector with an undo is {effect}", 'set effect = "compensable"'
    if undo and undo not in others:
        return "undo", f"{undo} is not a connector", kinds.nearest(undo, others)
    if effect == "compensable" and not undo:
        return "", "a compensable connector names what undoes it", 'add undo = "NAME of a connector"'
    return None


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "{" not in parts.netloc + parts.query


def _is_target(call: str) -> bool:
    path, _, function = call.rpartition(":")
    return path.endswith(".py") and function.isidentifier()
