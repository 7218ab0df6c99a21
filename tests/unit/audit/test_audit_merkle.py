"""Merkle tree: reference vectors of Certificate Transparency, and properties against the RFC's own recursion."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.merkle import (
    EMPTY,
    Tree,
    hash_leaf,
    hash_node,
    root,
    verify_consistency,
    verify_inclusion,
)

# Inputs and results of the reference tests of Certificate Transparency (RFC 6962), used by every implementation.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCY = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
    (
        6,
        7,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
]


def reference_tree() -> Tree:
    return Tree(hash_leaf(data) for data in INPUTS)


def numbered(count: int) -> list[bytes]:
    return [hash_leaf(str(number).encode()) for number in range(count)]


def split(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hash_node(naive_root(leaves[:k]), naive_root(leaves[k:]))


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162, 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*naive_path(index, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(index - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(old: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162, 2.1.4.1."""
    if old == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*naive_subproof(old, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(old - k, leaves[k:], False), naive_root(leaves[:k])]


def test_roots_of_the_reference_vectors() -> None:
    tree = reference_tree()
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS
    assert tree.root(0) == EMPTY == root([])
    assert root(hash_leaf(data) for data in INPUTS).hex() == ROOTS[-1]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_inclusion_proofs_of_the_reference_vectors(index: int, size: int, proof: list[str]) -> None:
    made = reference_tree().inclusion(index, size)
    assert [step.hex() for step in made] == proof
    assert verify_inclusion(hash_leaf(INPUTS[index]), index, size, made, bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCY)
def test_consistency_proofs_of_the_reference_vectors(old: int, new: int, proof: list[str]) -> None:
    made = reference_tree().consistency(old, new)
    assert [step.hex() for step in made] == proof
    assert verify_consistency(old, new, bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1]), made)


@given(st.integers(0, 70))
def test_root_is_that_of_the_rfc(size: int) -> None:
    leaves = numbered(size)
    assert Tree(leaves).root() == naive_root(leaves)


@given(st.data())
def test_inclusion_is_that_of_the_rfc_and_holds_only_for_its_leaf(data: st.DataObject) -> None:
    whole = data.draw(st.integers(1, 70))
    size = data.draw(st.integers(1, whole))
    index = data.draw(st.integers(0, size - 1))
    leaves = numbered(whole)
    tree = Tree(leaves)
    proof = tree.inclusion(index, size)
    assert proof == naive_path(index, leaves[:size])
    assert verify_inclusion(leaves[index], index, size, proof, tree.root(size))
    assert not verify_inclusion(hash_leaf(b"other"), index, size, proof, tree.root(size))
    other = data.draw(st.integers(0, size - 1))
    assert (other == index) == verify_inclusion(leaves[index], other, size, proof, tree.root(size))
    assert not verify_inclusion(leaves[index], index, size, [*proof, EMPTY], tree.root(size))
    if proof:
        assert not verify_inclusion(leaves[index], index, size, proof[:-1], tree.root(size))


@given(st.data())
def test_consistency_is_that_of_the_rfc_and_fails_for_another_past(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 70))
    old = data.draw(st.integers(1, new))
    leaves = numbered(new)
    tree = Tree(leaves)
    proof = tree.consistency(old)
    assert proof == naive_subproof(old, leaves, True)
    assert verify_consistency(old, new, tree.root(old), tree.root(), proof)
    changed = data.draw(st.integers(0, old - 1))
    forked = Tree([*leaves[:changed], hash_leaf(b"other"), *leaves[changed + 1 :]])
    assert not verify_consistency(old, new, forked.root(old), tree.root(), proof)
    assert not verify_consistency(old, new, tree.root(old), forked.root(), proof)
    assert not verify_consistency(old, new, tree.root(old), tree.root(), [*proof, EMPTY])
    if proof:
        assert not verify_consistency(old, new, tree.root(old), tree.root(), proof[:-1])


def test_one_changed_bit_of_a_proof_is_noticed() -> None:
    tree = Tree(numbered(45))
    for proof, check in (
        (tree.inclusion(13), lambda p: verify_inclusion(numbered(14)[13], 13, 45, p, tree.root())),
        (tree.consistency(22), lambda p: verify_consistency(22, 45, tree.root(22), tree.root(), p)),
    ):
        assert check(proof)
        for place, step in enumerate(proof):
            bent = [*proof]
            bent[place] = bytes([step[0] ^ 8]) + step[1:]
            assert not check(bent)


@pytest.mark.parametrize(
    ("old", "new", "old_root", "new_root", "proof", "good"),
    [
        (0, 0, EMPTY, EMPTY, [], True),
        (0, 1, EMPTY, ROOTS[0], [], True),
        (0, 1, ROOTS[1], ROOTS[0], [], False),
        (1, 1, ROOTS[0], ROOTS[0], [], True),
        (1, 1, ROOTS[0], ROOTS[0], [EMPTY], False),
        (1, 1, ROOTS[0], ROOTS[1], [], False),
        (2, 1, ROOTS[1], ROOTS[0], [], False),
        (1, 2, ROOTS[0], ROOTS[1], [], False),
        (3, 5, ROOTS[2], ROOTS[4], [], False),
        (1, 2, "00", ROOTS[1], [EMPTY], False),
    ],
)
def test_consistency_at_the_edges(
    old: int, new: int, old_root: str | bytes, new_root: str | bytes, proof: list[bytes], good: bool
) -> None:
    def raw(value: str | bytes) -> bytes:
        return bytes.fromhex(value) if isinstance(value, str) else value

    assert verify_consistency(old, new, raw(old_root), raw(new_root), proof) is good


def test_inclusion_at_the_edges() -> None:
    leaf = hash_leaf(b"x")
    assert verify_inclusion(leaf, 0, 1, [], leaf)
    assert not verify_inclusion(leaf, 0, 0, [], leaf)
    assert not verify_inclusion(leaf, 1, 1, [], leaf)
    assert not verify_inclusion(b"", 0, 1, [], b"")


def test_what_a_tree_does_not_hold_is_refused() -> None:
    tree = Tree(numbered(5))
    for wrong in (
        lambda: tree.root(6),
        lambda: tree.inclusion(5),
        lambda: tree.inclusion(3, 3),
        lambda: tree.consistency(6),
        lambda: tree.append(b"short"),
    ):
        with pytest.raises(ValueError, match=r"leaf|leaves"):
            wrong()
