"""Files become policies or an error that names file, line, key and cure."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import PolicyFileError
from holdfast.policy.model import load
from holdfast.policy.source import MAX_BYTES, parse, read, spell

DESIGN = """\
version: 1
policies:
  - id: cost-ceiling
    category: budget_usd
    scope: {agent: financial-reconciliation}
    with: {limit: 0.10, window: run}
    on_breach: terminate
  - id: wire-approval
    category: require_approval
    gates: [tool]
    when: action.name == "wire_transfer" && action.args.amount > 10000
    with: {approvers: ["role:controller"], quorum: 2, ttl: 24h}
    mode: enforce
"""


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str, name: str = "p.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def test_the_example_of_the_manual(write) -> None:
    cost, wire = load([write(DESIGN)])
    assert cost.params.limit == 100_000_000
    assert wire.params.ttl == 86_400_000_000
    assert (wire.line, wire.gates) == (8, ("tool",))


HEAD = "version: 1\npolicies:\n"
STEP = "  - {id: s, category: step_limit, with: {limit: 5}}\n"


@pytest.mark.parametrize(
    ("text", "line", "key", "cure"),
    [
        ("", 1, "", "start with: version: 1"),
        ("# nothing\n", 1, "", "start with: version: 1"),
        ("- a\n", 1, "", "start with: version: 1"),
        ("version: 1\npolicies: [}\n", 2, "", "check the indentation and the quotes"),
        ("version: 1\n\tpolicies: []\n", 2, "", "not YAML"),
        ("policies: []\n", 1, "version", "add version"),
        ("version: 2\npolicies: []\n", 1, "version", "must be 1"),
        ("version: 1\npolices: []\n", 2, "polices", "did you mean policies?"),
        ("version: 1\npolicies: {}\n", 2, "policies", "a list of policies"),
        ("version: 1\nversion: 1\n", 2, "version", "given twice"),
        (HEAD + "  - just text\n", 3, "policies[0]", "it needs id and category"),
        (HEAD + "  - category: step_limit\n    with: {limit: 1}\n", 3, "policies[0].id", "add id"),
        (HEAD + "  - id: s\n    with: {limit: 1}\n", 3, "policies[0].category", "add category"),
        (HEAD + "  - id: s\n    category: step_limits\n", 4, "policies[0].category", "did you mean step_limit?"),
        (HEAD + "  - id: s\n    catgory: step_limit\n", 4, "policies[0].catgory", "did you mean category?"),
        (HEAD + "  - id: a b\n    category: step_limit\n", 3, "policies[0].id", "does not have the form"),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with:\n      limits: 5\n",
            6,
            "policies[0].with.limits",
            "did you mean limit?",
        ),
        (HEAD + "  - id: s\n    category: step_limit\n", 3, "policies[0].with.limit", "add limit"),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 0}\n",
            5,
            "policies[0].with.limit",
            "greater than or equal to 1",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: many}\n",
            5,
            "policies[0].with.limit",
            "valid integer",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 2.5}\n",
            5,
            "policies[0].with.limit",
            "integer",
        ),
        (
            HEAD + "  - id: s\n    category: budget_usd\n    with: {limit: 0.0000000001}\n",
            5,
            "policies[0].with.limit",
            "finer than a nano-dollar",
        ),
        (
            HEAD + "  - id: s\n    category: budget_usd\n    with: {limit: 0}\n",
            5,
            "policies[0].with.limit",
            "greater than 0",
        ),
        (
            HEAD + "  - id: s\n    category: budget_usd\n    with: {limit: 1, window: weak}\n",
            5,
            "policies[0].with.window",
            "must be",
        ),
        (
            HEAD + "  - id: s\n    category: wall_clock_limit\n    with: {limit: 24}\n",
            5,
            "policies[0].with.limit",
            "24h",
        ),
        (
            HEAD + "  - id: s\n    category: require_approval\n    with: {approvers: [controller]}\n",
            5,
            "policies[0].with.approvers[0]",
            "does not have the form",
        ),
        (
            HEAD + "  - id: s\n    category: require_approval\n    with: {on_expiry: escalate}\n",
            5,
            "policies[0].with",
            "escalate_to",
        ),
        (
            HEAD + "  - id: s\n    category: require_approval\n    with: {escalate_to: ['role:a']}\n",
            5,
            "policies[0].with",
            "only with on_expiry: escalate",
        ),
        (
            HEAD + "  - id: s\n    category: four_eyes\n    with: {approvers: ['user:a']}\n",
            5,
            "policies[0].with",
            "quorum of 2",
        ),
        (HEAD + "  - id: s\n    category: tool_allowlist\n", 3, "policies[0].with", "give allow, deny or both"),
        (HEAD + "  - id: s\n    category: model_price_ceiling\n", 3, "policies[0].with", "there is no ceiling"),
        (
            HEAD + "  - id: s\n    category: model_allowlist\n    with: {allow: ['m-*'], pinned: true}\n",
            5,
            "policies[0].with",
            "exact ids",
        ),
        (
            HEAD + "  - id: s\n    category: rate_limit\n    with: {limit: 5000000, period: 1s}\n",
            5,
            "policies[0].with",
            "lengthen period",
        ),
        (
            HEAD + "  - id: s\n    category: loop_detection\n    with: {max_cycle: 16, cycle_repeats: 16}\n",
            5,
            "policies[0].with",
            "max_cycle",
        ),
        (
            HEAD + "  - id: s\n    category: loop_detection\n    with: {max_repeats: 20, window: 20}\n",
            5,
            "policies[0].with",
            "window larger",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    gates: [stap]\n",
            6,
            "policies[0].gates[0]",
            "did you mean step?",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    gates: [llm]\n",
            6,
            "policies[0].gates[0]",
            "it can at step",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    gates: []\n",
            6,
            "policies[0].gates",
            "leave the key out",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    scope: {agents: x}\n",
            6,
            "policies[0].scope.agents",
            "did you mean agent?",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    scope: {agent: 5}\n",
            6,
            "policies[0].scope.agent",
            "put it in quotes",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    on_breach: throttle\n",
            6,
            "policies[0].on_breach",
            "use one of terminate",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    on_breach: denny\n",
            6,
            "policies[0].on_breach",
            "did you mean deny?",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    mode: enfrce\n",
            6,
            "policies[0].mode",
            "did you mean enforce?",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    when: action.nam == 'x'\n",
            6,
            "policies[0].when",
            "did you mean name?",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    when: action.name ==\n",
            6,
            "policies[0].when",
            "not CEL",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    approval: {quorum: 2}\n",
            6,
            "policies[0].approval",
            "only with on_breach: require_approval",
        ),
        (
            HEAD + "  - id: s\n    category: step_limit\n    with: {limit: 5}\n    on_breach: require_approval\n"
            "    approval: {quorum: 2, approvers: ['user:a']}\n",
            7,
            "policies[0].approval",
            "quorum of 2",
        ),
        (HEAD + STEP + STEP, 4, "id", "is taken by"),
        ("version: 1\nprofiles: [soc3]\npolicies: []\n", 2, "profiles[0]", "there is no profile soc3"),
        ("version: 1\npolicies: !!set {a}\n", 2, "policies", "list"),
        ("version: !!binary aaaa\n", 1, "version", "no meaning here"),
        ("? [a, b]\n: 1\n", 1, "", "must be text"),
    ],
)
def test_an_error_names_file_line_key_and_cure(write, text: str, line: int, key: str, cure: str) -> None:
    path = write(text)
    with pytest.raises(PolicyFileError) as caught:
        load([path])
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: {key}"), message
    assert cure in message
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_all_problems_are_counted(write) -> None:
    path = write(HEAD + "  - id: a\n    category: nope\n  - id: b\n    category: step_limit\n")
    with pytest.raises(PolicyFileError, match=r"and 1 more; holdfast policy lint"):
        load([path])


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="does not exist"):
        load([tmp_path / "none.yaml"])
    with pytest.raises(PolicyFileError, match="cannot be read"):
        load([tmp_path])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00",
        b"a: " + b"[" * 2000 + b"]" * 2000,
        b"a: &x [1]\nb: &y [*x,*x,*x,*x,*x,*x,*x,*x]\nc: &z [*y,*y,*y,*y,*y,*y,*y,*y]\n"
        b"d: &w [*z,*z,*z,*z,*z,*z,*z,*z]\n"
        b"e: &v [*w,*w,*w,*w,*w,*w,*w,*w]\nf: &u [*v,*v,*v,*v,*v,*v,*v,*v]\ng: [*u,*u,*u,*u,*u,*u,*u,*u]\n",
        b"a: &x [*x]\n",
        b"#" * (MAX_BYTES + 1),
        b"a: 1\n---\nb: 2\n",
        b"a: *nowhere\n",
    ],
)
def test_hostile_yaml_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyFileError):
        parse(data, "x.yaml")


def test_yaml_as_people_mean_it() -> None:
    text = b"a: off\nb: on\nc: yes\nd: 0.10\ne: 12\nf: true\ng: null\nh: ~\ni:\nj: '5'\nk: 1e-3\nl: 24h\nm: 1:30\n"
    value = parse(text, "x.yaml").value
    assert value == {
        "a": "off",
        "b": "on",
        "c": "yes",
        "d": Decimal("0.10"),
        "e": 12,
        "f": True,
        "g": None,
        "h": None,
        "i": None,
        "j": "5",
        "k": Decimal("0.001"),
        "l": "24h",
        "m": "1:30",
    }


def test_a_mode_that_is_off(write) -> None:
    (item,) = load([write(HEAD + "  - {id: s, category: step_limit, with: {limit: 5}, mode: off}\n")])
    assert item.policy.mode == "off"


def test_profiles_are_read_from_their_folder(write, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "strict.yaml").write_text(
        "version: 1\ntitle: T\nabout: A\nrequires: [{control: c-1, says: few steps, rule: strict/s}]\n"
        "policies:\n  - {id: strict/s, category: step_limit, with: {limit: 5}}\n"
    )
    (folder / "loop.yaml").write_text("version: 1\nprofiles: [strict]\npolicies: []\n")
    found = load([write("version: 1\nprofiles: [strict]\npolicies: []\n")], profiles=folder)
    assert [(item.policy.id, Path(item.file).name) for item in found] == [("strict/s", "strict.yaml")]
    with pytest.raises(PolicyFileError, match="did you mean strict"):
        load([write("version: 1\nprofiles: [stritc]\npolicies: []\n")], profiles=folder)
    with pytest.raises(PolicyFileError, match="there is no key profiles"):
        load([write("version: 1\nprofiles: [loop]\npolicies: []\n")], profiles=folder)


def test_lines_of_a_document(write) -> None:
    document = read(write(DESIGN))
    assert document.line(("policies", 1, "with", "ttl")) == 12
    assert document.line(("policies", 1, "with", "nothing")) == 12
    assert document.line(("nothing",)) == 1
    assert spell(("policies", 1, "with", "ttl")) == "policies[1].with.ttl"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet="abc:-[]{}'\"\n &*!#1.~", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        document = parse(data, "x.yaml")
    except PolicyFileError as error:
        message = str(error)
    else:
        message = f"x.yaml:{document.line(())}"
    assert message.startswith("x.yaml")
