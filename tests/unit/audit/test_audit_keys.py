"""The audit key: made once, private, and every way in which it cannot be used says what to do."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.audit.keys import PrivateKey, ensure, load, load_public
from holdfast.errors import AuditError, StoreError


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    key = ensure(home)
    assert ensure(home).public == key.public == load(home).public == load_public(home / "audit.pub")
    assert stat.S_IMODE((home / "audit.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["audit.key", "audit.pub"]


def test_processes_that_ask_at_once_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: ensure(tmp_path).public, range(32)))
    assert len(set(keys)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.key", "audit.pub"]


def test_signatures_check_and_no_representation_shows_the_key() -> None:
    key = PrivateKey(bytes(range(32)))
    signature = key.sign(b"message")
    assert key.public.check(b"message", signature)
    assert not key.public.check(b"massage", signature)
    assert not key.public.check(b"message", signature[:-1])
    assert repr(key) == f"PrivateKey(holdfast/{key.public.home})"
    assert repr(key.public) == f"PublicKey(holdfast/{key.public.home})"
    assert len({key.public, PrivateKey(bytes(range(32))).public}) == 1


def test_a_lost_public_key_is_written_again(tmp_path: Path) -> None:
    key = ensure(tmp_path)
    (tmp_path / "audit.pub").unlink()
    ensure(tmp_path)
    assert load_public(tmp_path / "audit.pub") == key.public


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path)
    (tmp_path / "audit.key").chmod(0o644)
    with pytest.raises(AuditError, match="chmod 600"):
        load(tmp_path)


def test_missing_keys_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.key is missing.*[Rr]estore"):
        load(tmp_path)
    with pytest.raises(AuditError, match=r"audit\.pub is missing.*Restore"):
        load_public(tmp_path / "audit.pub")


@pytest.mark.parametrize("name", ["audit.key", "audit.pub"])
@pytest.mark.parametrize("damage", ["empty", "cut", "letter", "noise"])
def test_damaged_keys_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    ensure(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data.clear()
    elif damage == "cut":
        del data[-10:]
    elif damage == "letter":
        data[-20] = ord("A") if data[-20] != ord("A") else ord("B")
    else:
        data[:] = b"\xff" * 100
    path.write_bytes(bytes(data))
    with pytest.raises(AuditError, match=r"damaged\. Restore"):
        load(tmp_path) if name == "audit.key" else load_public(path)


def test_a_home_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be made"):
        ensure(tmp_path / "file" / "home")
