"""Step ids follow from the order of calls alone, and no two calls of a run share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ProtocolError
from holdfast.node.run import approval_id, idempotency_key
from holdfast.node.scope import MAX_DEPTH, MAX_NAME, Scope, clean

NAMES = st.text(min_size=0, max_size=20)


def test_ordinals_count_by_name_and_places_by_call() -> None:
    scope = Scope()
    assert scope.next("validate") == ("validate.1", 0)
    assert scope.next("execute") == ("execute.1", 1)
    assert scope.next("validate") == ("validate.2", 2)
    inner = scope.enter("validate.2")
    assert inner.next("llm.classify") == ("validate.2/llm.classify.1", 0)
    assert scope.next("validate") == ("validate.3", 3)


def test_branches_have_scopes_of_their_own() -> None:
    scope = Scope().enter("outer.1")
    left, right = scope.branch(1, 0), scope.branch(1, 1)
    assert left.next("score")[0] == "outer.1/gather.1.0/score.1"
    assert right.next("score")[0] == "outer.1/gather.1.1/score.1"
    assert Scope().branch(2, 0).next("score")[0] == "gather.2.0/score.1"


def test_depth_is_bounded() -> None:
    scope = Scope()
    for number in range(MAX_DEPTH):
        scope = scope.enter(scope.next(f"s{number}")[0])
    with pytest.raises(ProtocolError, match=f"deeper than {MAX_DEPTH}"):
        scope.next("more")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llm.classify", "llm.classify"),
        ("a/b", "a_b"),
        ("line\nbreak", "line_break"),
        ("", "_"),
        ("grüße", "gr__e"),
        ("<lambda>", "<lambda>"),
        ("x" * 500, "x" * MAX_NAME),
    ],
)
def test_names_carry_no_separators(name: str, wanted: str) -> None:
    assert clean(name) == wanted


@given(NAMES)
def test_a_clean_name_stays_as_it_is(name: str) -> None:
    once = clean(name)
    assert clean(once) == once
    assert 0 < len(once) <= MAX_NAME
    assert "/" not in once


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=3), NAMES), max_size=40))
def test_no_two_calls_share_an_id_and_the_same_calls_get_the_same_ids(calls: list[tuple[list[int], str]]) -> None:
    def ids() -> list[str]:
        root = Scope()
        scopes: dict[tuple[int, ...], Scope] = {(): root}
        found = []
        for path, name in calls:
            for depth in range(1, len(path) + 1):
                key = tuple(path[:depth])
                if key not in scopes:
                    scopes[key] = scopes[key[:-1]].branch(1, key[-1])
            found.append(scopes[tuple(path)].next(clean(name))[0])
        return found

    first = ids()
    assert ids() == first
    assert len(set(first)) == len(first)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_keys_are_stable_and_differ_by_run_and_step(run: str, step: str, other_run: str, other_step: str) -> None:
    assert idempotency_key(run, step) == idempotency_key(run, step)
    assert approval_id(run, step).startswith(f"{run}-")
    if (run, step) != (other_run, other_step):
        assert idempotency_key(run, step) != idempotency_key(other_run, other_step)
