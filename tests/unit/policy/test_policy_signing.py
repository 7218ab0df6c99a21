"""Signatures of policy files."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.audit.keys import PrivateKey
from holdfast.errors import PolicyFileError
from holdfast.policy.signing import SUFFIX, message, signature, signer

KEY, OTHER = PrivateKey(b"1" * 32), PrivateKey(b"2" * 32)
DATA = b"version: 1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "rules.yaml"
    found.write_bytes(DATA)
    return found


def sign(path: Path, key: PrivateKey = KEY, data: bytes = DATA) -> Path:
    beside = path.with_name(path.name + SUFFIX)
    beside.write_text(signature(data, key.public.name, key.sign))
    return beside


def test_a_signed_file_names_its_signer(path: Path) -> None:
    sign(path)
    assert signer(path, DATA, [OTHER.public, KEY.public], required=True) == KEY.public.name


def test_what_is_not_signed_is_refused_only_where_it_must_be(path: Path) -> None:
    assert signer(path, DATA, [KEY.public], required=False) == ""
    with pytest.raises(PolicyFileError, match="is not signed") as caught:
        signer(path, DATA, [KEY.public], required=True)
    assert "holdfast policy sign" in str(caught.value)


@pytest.mark.parametrize("required", [True, False])
def test_a_signature_that_does_not_hold_is_refused_either_way(path: Path, required: bool) -> None:
    sign(path)
    with pytest.raises(PolicyFileError, match="is not what"):
        signer(path, DATA + b"# more\n", [KEY.public], required=required)
    with pytest.raises(PolicyFileError, match="none of"):
        signer(path, DATA, [OTHER.public], required=required)


@pytest.mark.parametrize("text", ["", "x", "holdfast-policy-v2 a b", "holdfast-policy-v1 a", "\x00" * 50])
def test_what_is_no_signature_is_said_to_be_none(path: Path, text: str) -> None:
    path.with_name(path.name + SUFFIX).write_text(text)
    with pytest.raises(PolicyFileError, match="no signature"):
        signer(path, DATA, [KEY.public], required=False)


def test_every_changed_byte_of_a_signature_is_found(path: Path) -> None:
    beside = sign(path)
    good = beside.read_bytes().rstrip()
    start = good.rindex(b" ") + 1
    for place in range(start, len(good) - 3, 7):
        changed = bytearray(good)
        changed[place] = ord("A") if changed[place] != ord("A") else ord("B")
        beside.write_bytes(bytes(changed))
        with pytest.raises(PolicyFileError):
            signer(path, DATA, [KEY.public], required=False)


def test_without_trusted_keys_signatures_mean_nothing(path: Path) -> None:
    path.with_name(path.name + SUFFIX).write_text("whatever")
    assert signer(path, DATA, [], required=False) == ""


def test_what_is_signed_names_its_purpose() -> None:
    assert message(DATA).startswith(b"holdfast-policy-v1\n")
    assert message(DATA) != message(DATA + b" ")
