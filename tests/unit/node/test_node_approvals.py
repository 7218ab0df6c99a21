"""When a request for approval is settled, and whose answer counts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import ApprovalSpec, Grant
from holdfast.node.approvals import eligible, settled

PEOPLE = ("alice", "bob", "carol", "dave")
ROLES = {"alice": ("controller",), "bob": ("controller", "clerk"), "carol": ("clerk",), "dave": ()}


def grant(who: str, approved: bool = True) -> Grant:
    return Grant(principal=who, auth="token", roles=ROLES[who], approved=approved)


@pytest.mark.parametrize(
    ("spec", "who", "counts"),
    [
        (ApprovalSpec(), "dave", True),
        (ApprovalSpec(approvers=("role:controller",)), "bob", True),
        (ApprovalSpec(approvers=("role:controller",)), "carol", False),
        (ApprovalSpec(approvers=("user:carol",)), "carol", True),
        (ApprovalSpec(approvers=("user:clerk",)), "carol", False),
        (ApprovalSpec(approvers=("role:carol",)), "carol", False),
        (ApprovalSpec(distinct_from_requester=True), "alice", False),
        (ApprovalSpec(distinct_from_requester=True), "bob", True),
        (ApprovalSpec(approvers=("user:alice",), distinct_from_requester=True), "alice", False),
    ],
)
def test_whose_answer_counts(spec: ApprovalSpec, who: str, counts: bool) -> None:
    why = eligible(spec, grant(who), "alice")
    assert (not why) == counts
    if why:
        assert who in why


@pytest.mark.parametrize(
    ("quorum", "answers", "state"),
    [
        (1, [], ""),
        (1, [("alice", True)], "approved"),
        (2, [("alice", True)], ""),
        (2, [("alice", True), ("alice", True)], ""),
        (2, [("alice", True), ("bob", True)], "approved"),
        (2, [("alice", True), ("carol", True)], ""),
        (2, [("alice", True), ("carol", False)], ""),
        (2, [("alice", True), ("bob", False)], "denied"),
        (1, [("alice", True), ("bob", False)], "denied"),
    ],
)
def test_when_it_is_settled(quorum: int, answers: list[tuple[str, bool]], state: str) -> None:
    spec = ApprovalSpec(approvers=("role:controller",), quorum=quorum)
    assert settled(spec, [grant(*answer) for answer in answers], "dave") == state


specs = st.builds(
    ApprovalSpec,
    approvers=st.lists(st.sampled_from(["role:controller", "role:clerk", "user:dave"]), max_size=2).map(tuple),
    quorum=st.integers(1, 3),
    distinct_from_requester=st.booleans(),
)
answers = st.lists(st.builds(grant, st.sampled_from(PEOPLE), st.booleans()), max_size=6)


@given(specs, answers, st.sampled_from(PEOPLE))
def test_order_and_repetition_do_not_matter(spec: ApprovalSpec, given_: list[Grant], requester: str) -> None:
    state = settled(spec, given_, requester)
    assert settled(spec, list(reversed(given_)), requester) == state
    assert settled(spec, [*given_, *given_], requester) == state


@given(specs, answers, st.sampled_from(PEOPLE))
def test_approved_means_a_quorum_of_people_who_may_and_nobody_against(
    spec: ApprovalSpec, given_: list[Grant], requester: str
) -> None:
    counted = [one for one in given_ if not eligible(spec, one, requester)]
    people = {one.principal for one in counted}
    against = any(not one.approved for one in counted)
    assert (settled(spec, given_, requester) == "denied") == against
    assert (settled(spec, given_, requester) == "approved") == (not against and len(people) >= spec.quorum)


@given(specs, answers, st.sampled_from(PEOPLE))
def test_a_stricter_request_is_never_approved_sooner(spec: ApprovalSpec, given_: list[Grant], requester: str) -> None:
    stricter = msgspec.structs.replace(spec, quorum=spec.quorum + 1, distinct_from_requester=True)
    if settled(stricter, given_, requester) == "approved":
        assert settled(spec, given_, requester) in ("approved", "denied")
