"""The Merkle tree of a log (RFC 9162, 2.1): roots, inclusion and consistency proofs, and how to check them.

Pure: bytes in, bytes out. A leaf is the hash of an event's bytes as :func:`holdfast.journal.event.leaf` gives it; sizes
and places count from zero as in the RFC. What only needs the root of a growing log uses
:mod:`holdfast.journal.frontier`, which keeps O(log n) hashes instead of all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH_SIZE = 32
EMPTY = hashlib.sha256().digest()
"""Root of the tree without leaves."""


def hash_leaf(data: bytes) -> bytes:
    """Leaf hash: SHA-256(0x00 ‖ data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """All hashes of a log that grows: answers for every size up to its own.

    Keeps each complete subtree's hash (two hashes a leaf), so that a root or a proof costs O(log n).
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash (32 bytes) at the end."""
        if len(leaf) != HASH_SIZE:
            raise ValueError(f"a leaf hash has {HASH_SIZE} bytes, not {len(leaf)}")
        self._levels[0].append(leaf)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            pair = hash_node(self._levels[level][-2], self._levels[level][-1])
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(pair)

    def root(self, size: int | None = None) -> bytes:
        """Root of the first ``size`` leaves (all of them by default).

        Raises:
            ValueError: the tree is smaller than that.
        """
        size = len(self) if size is None else self._bounded(size)
        return self._subtree(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Proof that the leaf at ``index`` is in the tree of ``size`` leaves (RFC 9162, 2.1.3.1).

        Raises:
            ValueError: there is no such leaf in a tree of that size.
        """
        size = len(self) if size is None else self._bounded(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
        proof: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                proof.append(self._subtree(middle, high))
                high = middle
            else:
                proof.append(self._subtree(low, middle))
                low = middle
        proof.reverse()
        return proof

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Proof that the tree of ``old`` leaves is the beginning of that of ``size`` (RFC 9162, 2.1.4.1).

        Raises:
            ValueError: ``old`` is not between 0 and ``size``.
        """
        size = len(self) if size is None else self._bounded(size)
        if not 0 <= old <= size:
            raise ValueError(f"a tree of {size} leaves has no beginning of {old}")
        if old in (0, size):
            return []
        proof: list[bytes] = []
        low, high = 0, size
        while high != old:
            middle = low + _split(high - low)
            if old <= middle:
                proof.append(self._subtree(middle, high))
                high = middle
            else:
                proof.append(self._subtree(low, middle))
                low = middle
        if low:
            proof.append(self._subtree(low, high))
        proof.reverse()
        return proof

    def _bounded(self, size: int) -> int:
        if not 0 <= size <= len(self):
            raise ValueError(f"the tree has {len(self)} leaves, not {size}")
        return size

    def _subtree(self, low: int, high: int) -> bytes:
        count = high - low
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._levels[level][low >> level]
        middle = low + _split(count)
        return hash_node(self._subtree(low, middle), self._subtree(middle, high))


def root(leaves: Iterable[bytes]) -> bytes:
    """Root of the tree over leaf hashes."""
    return Tree(leaves).root()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` shows that ``leaf`` is at ``index`` of the tree of ``size`` leaves with that root
    (RFC 9162, 2.1.3.2).
    """
    if not 0 <= index < size or not _hashes([leaf, root, *proof]):
        return False
    place, last = index, size - 1
    result = leaf
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            result = hash_node(step, result)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            result = hash_node(result, step)
        place >>= 1
        last >>= 1
    return last == 0 and result == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the tree (``old``, ``old_root``) is the beginning of (``new``, ``new_root``)
    (RFC 9162, 2.1.4.2). An empty tree is the beginning of every tree.
    """
    if not 0 <= old <= new or not _hashes([old_root, new_root, *proof]):
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place >>= 1
        last >>= 1
    first = second = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first = hash_node(step, first)
            second = hash_node(step, second)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            second = hash_node(second, step)
        place >>= 1
        last >>= 1
    return last == 0 and first == old_root and second == new_root


def _split(count: int) -> int:
    """The largest power of two that is smaller than ``count`` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def _hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == HASH_SIZE for value in values)
