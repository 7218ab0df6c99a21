"""Settings: what is read, where it comes from, and what is refused with which words."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import config
from holdfast import settings_kinds as kinds
from holdfast.errors import ConfigError

FULL = """
[store]
url = "postgresql://db/x"

[llm]
model = "small"
provider = "openai"
[llm.prices."small"]
input = 0.15
output = 0.6

[policy]
files = ["policies/a.yaml", "/etc/b.yaml"]

[connectors.wire]
call = "tools/bank.py:wire"
[connectors.book]
call = "bank.py:book"
effect = "compensable"
undo = "unbook"
timeout = "30s"
retries = 2
[connectors.unbook]
call = "bank.py:unbook"
effect = "idempotent"

[tenants.acme.connectors.wire]
url = "https://bank.example/wire"

[principals."uid:1000"]
roles = ["controller"]

[sandbox]
memory = "512MiB"
uid_range = [200000, 200999]
cpu = 1.5

[node]
grace = "500ms"

[egress]
allow_private = ["127.0.0.1:8080"]
"""


def read(text: str, environ: dict[str, str] | None = None) -> config.Settings:
    return config.parse(text, Path("/srv/app/holdfast.toml"), environ or {})


def test_everything_is_read_in_its_unit() -> None:
    settings = read(FULL)
    assert settings.store.url == "postgresql://db/x"
    assert settings.llm.prices["small"].input == 150
    assert settings.llm.prices["small"].output == 600
    assert settings.policy.files == (Path("/srv/app/policies/a.yaml"), Path("/etc/b.yaml"))
    assert settings.connectors["wire"].effect == "irreversible"
    assert settings.connectors["wire"].folder == Path("/srv/app")
    assert settings.connectors["book"].timeout == 30_000_000
    assert settings.principals["uid:1000"].roles == ("controller",)
    assert settings.sandbox.memory == 512 << 20
    assert settings.sandbox.uid_range == (200000, 200999)
    assert settings.sandbox.cpu == 1.5
    assert settings.node.grace == 500_000
    assert settings.egress.allow_private == ("127.0.0.1:8080",)


def test_no_connector_of_the_default_tenant_reaches_another() -> None:
    settings = read(FULL)
    assert set(settings.connectors_of("default")) == {"wire", "book", "unbook"}
    assert set(settings.connectors_of("acme")) == {"wire"}
    assert settings.connectors_of("acme")["wire"].url
    assert settings.connectors_of("nobody") == {}


def test_each_value_knows_where_it_comes_from() -> None:
    settings = read(FULL, {"HOLDFAST_LLM_MODEL": "large"})
    assert settings.llm.model == "large"
    assert settings.origin("llm.model") == "HOLDFAST_LLM_MODEL"
    assert settings.origin("store.url") == "holdfast.toml:3"
    line = FULL.splitlines().index('grace = "500ms"') + 1
    assert settings.origin("node.grace") == f"holdfast.toml:{line}"
    assert settings.origin("node.lease") == "default"


def test_every_plain_key_has_a_variable_that_overrides_it() -> None:
    samples = {
        "duration": "9s", "size": "9MiB", "whole number": "99", "number": "0.5", "two uids": "7-8",
        "list of paths": "x.yaml, y.yaml", "list of texts": "a, b", "true or false": "true",
    }  # fmt: skip
    named = config.variables()
    assert {section for section, _ in named.values()} == set(config.PLAIN)
    for name, (section, key) in named.items():
        spec = kinds.fields(config.PLAIN[section])[key]
        text = samples.get(spec.kind.word) or ("landlock" if key == "level" else "openai")
        settings = config.parse("", None, {name: text})
        assert getattr(getattr(settings, section), key) != spec.default, name
        assert settings.origin(f"{section}.{key}") == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[store\n", ["is not TOML", "line 1"]),
        ("[stroe]\nurl = 'x'\n", ["holdfast.toml:1", "[stroe]", "did you mean store?"]),
        ("\n[llm]\nmodle = 'x'\n", ["holdfast.toml:3", "modle", "did you mean model?"]),
        ("[llm]\nmodel = 3\n", ["holdfast.toml:2", "3", "write text in quotes"]),
        ("[node]\ngrace = 5\n", [":2", "grace", 'write a duration such as "30s"']),
        ("[node]\ngrace = '5 years'\n", [":2", "write a duration"]),
        ("[sandbox]\nmemory = '1TB'\n", [":2", 'write a size such as "512MiB"']),
        ("[sandbox]\nlevel = 'vm'\n", [":2", "'vm'", "one of namespace, process"]),
        ("[sandbox]\npids = true\n", [":2", "write a whole number from 1"]),
        ("[sandbox]\nuid_range = [0, 5]\n", [":2", "two uids above 0"]),
        ("[policy]\nfiles = 'a.yaml'\n", [":2", "write a list of texts"]),
        ("[policy]\nrequire_signed = 1\n", [":2", "write true or false"]),
        ("store = 1\n", [":1", "write a table [store]"]),
        ("connectors = 1\n", [":1", "write tables [connectors.NAME]"]),
        ("[connectors.a]\neffect = 'pure'\n", [":1", "exactly one of call, url and mcp and has none"]),
        ("[connectors.a]\ncall='a.py:f'\nurl='x'\n", ["has call and url", "keep one"]),
        ("[connectors.a]\ncall='a:f'\n", [":2", "write file.py:function"]),
        ("[connectors.a]\ncall='a.py:f'\nundo='b'\n", [":3", 'effect = "compensable"']),
        ("[connectors.a]\ncall='a.py:f'\neffect='compensable'\n", ['add undo = "NAME']),
        ("[connectors.a]\ncall='a.py:f'\neffect='compensable'\nundo='x'\n", [":4", "x is not a connector"]),
        ("[tenants.t.connectors.a]\neffect='pure'\n", [":1", "exactly one of"]),
        ("[tenants.t]\nregion='x'\n", [":2", "region is not a setting"]),
        ("[principals.alice]\nroles=['a']\n", [":1", "cannot prove who it is", "token_sha256"]),
        ("[principals.alice]\ntoken_sha256='abc'\n", [":2", "64 hex digits"]),
        ("[principals.'uid:x']\nroles=[]\n", ["not a uid"]),
        (f"[principals.'uid:7']\ntoken_sha256='{'a' * 64}'\n", ["proved by the system"]),
        ("[llm.prices.x]\ninput = 1\n", [":1", "has no output"]),
        ("[llm.prices.x]\ninput = -1\noutput = 1\n", [":2", "US dollars per million"]),
        ("[llm.prices.x]\ninput = nan\noutput = 1\n", [":2", "US dollars per million"]),
    ],
)
def test_what_cannot_be_used_is_refused_with_place_and_cure(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("HOLDFAST_STORE_ULR", "x", "did you mean HOLDFAST_STORE_URL?"),
        ("HOLDFAST_NODE_GRACE", "soon", "write a duration"),
        ("HOLDFAST_SANDBOX_PIDS", "many", "whole number"),
        ("HOLDFAST_SANDBOX_CPU", "nan", "number above 0"),
        ("HOLDFAST_SANDBOX_UID_RANGE", "5", "first-last"),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("", {name: text})
    assert name in str(caught.value)
    assert word in str(caught.value)


def test_misspelt_variables_are_found_and_inner_ones_are_not() -> None:
    environ = {"HOLDFAST_STROE_URL": "x", "HOLDFAST_HOME": "h", "HOLDFAST_RUN_ID": "r", "HOLDFAST_LLM_MODEL": "m"}
    assert config.unknown_variables(environ) == ["HOLDFAST_STROE_URL"]


def test_the_working_directory_comes_before_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert config.load(home, cwd=tmp_path, environ={}).file is None
    (home / "holdfast.toml").write_text("[llm]\nmodel = 'home'\n")
    assert config.load(home, cwd=tmp_path, environ={}).llm.model == "home"
    (tmp_path / "holdfast.toml").write_text("[llm]\nmodel = 'cwd'\n")
    assert config.load(home, cwd=tmp_path, environ={}).llm.model == "cwd"


def test_an_unreadable_file_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="make it readable UTF-8"):
        config.load(tmp_path, cwd=tmp_path, environ={})


def test_the_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.home_folder({}) == tmp_path / ".holdfast"
    assert config.home_folder({"HOLDFAST_HOME": "/x"}) == Path("/x")


def test_a_token_is_kept_as_its_digest_only() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    settings = read(f"[principals.alice]\nroles=['a','b']\ntoken_sha256='{digest.upper()}'\n")
    assert settings.principals["alice"].token_sha256 == digest


@given(st.integers(min_value=0, max_value=10**15))
def test_durations_and_sizes_survive_writing(value: int) -> None:
    assert kinds.duration(kinds.write_duration(value)) == value
    assert kinds.size(kinds.write_size(value)) == value


@given(st.text(max_size=40))
def test_any_text_is_either_settings_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(read(text), config.Settings)
