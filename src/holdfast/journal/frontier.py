"""The right edge of a tenant's Merkle tree (RFC 9162, 2.1): all that a log needs in order to grow and to be signed.

A frontier is bytes: the log's size (8 bytes, big-endian), then the hashes of the perfect subtrees that the size's
binary digits stand for, largest first. The empty log's frontier is ``b""``.
"""

from __future__ import annotations

from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()
"""Root of a log without leaves."""


def size(frontier: bytes) -> int:
    """Leaves in the log."""
    return int.from_bytes(frontier[:8], "big")


def push(frontier: bytes, leaf: bytes) -> bytes:
    """The frontier after one more leaf hash (32 bytes): each trailing one of the size is a subtree to merge with."""
    count = int.from_bytes(frontier[:8], "big")
    end = len(frontier)
    rest = count
    while rest & 1:
        leaf = sha256(b"\x01" + frontier[end - 32 : end] + leaf).digest()
        end -= 32
        rest >>= 1
    return (count + 1).to_bytes(8, "big") + frontier[8:end] + leaf


def root(frontier: bytes) -> bytes:
    """Root hash (32 bytes) of the log that ends here."""
    if len(frontier) <= 8:
        return EMPTY_ROOT
    node = frontier[-32:]
    for start in range(len(frontier) - 64, 7, -32):
        node = sha256(b"\x01" + frontier[start : start + 32] + node).digest()
    return node
