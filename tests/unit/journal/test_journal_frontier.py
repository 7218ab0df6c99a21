"""The frontier's root is that of RFC 9162, section 2.1.1, as its recursive definition gives it."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from holdfast.journal.frontier import EMPTY_ROOT, push, root, size


def tree_head(leaves: list[bytes]) -> bytes:
    """MTH over leaf hashes, written as the RFC writes it."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + tree_head(leaves[:split]) + tree_head(leaves[split:])).digest()


def test_every_size_up_to_70() -> None:
    frontier = b""
    leaves: list[bytes] = []
    assert root(frontier) == EMPTY_ROOT == tree_head([])
    for number in range(70):
        leaves.append(sha256(bytes([number])).digest())
        frontier = push(frontier, leaves[-1])
        assert size(frontier) == len(leaves)
        assert root(frontier) == tree_head(leaves)
        assert len(frontier) == 8 + 32 * len(leaves).bit_count()


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40), st.data())
def test_another_leaf_is_another_root(leaves: list[bytes], data: st.DataObject) -> None:
    changed = list(leaves)
    place = data.draw(st.integers(0, len(leaves) - 1))
    changed[place] = bytes(byte ^ 1 for byte in changed[place])
    one = other = b""
    for leaf, wrong in zip(leaves, changed, strict=True):
        one, other = push(one, leaf), push(other, wrong)
    assert root(one) != root(other)
