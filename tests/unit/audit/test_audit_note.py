"""Signed notes and checkpoints: published notes verify, ours round-trip, malformed ones are refused with a reason."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.keys import PrivateKey, PublicKey
from holdfast.audit.note import (
    Checkpoint,
    checkpoint_text,
    key_id,
    origin,
    parse,
    parse_checkpoint,
    sign_checkpoint,
    verified,
)
from holdfast.errors import AuditError

# Published examples of the format's first implementation and of a later one.
PUBLISHED = [
    (
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n",
    ),
    (
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "This is an example message.\n\n"
        "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYj"
        "OBH3mFXmRKuwHjG1Yu72IneyaQM=\n",
    ),
]
KEY = PrivateKey(bytes(range(32)))
HEAD = Checkpoint(origin=origin(KEY.public.home, "default"), size=7, root=bytes(range(32)))


def signed(head: Checkpoint = HEAD) -> bytes:
    return sign_checkpoint(head, KEY.public.raw, KEY.sign)


def good(data: bytes, name: str = HEAD.origin) -> bool:
    return verified(parse(data), name, KEY.public.raw, KEY.public.check)


@pytest.mark.parametrize(("line", "data"), PUBLISHED)
def test_published_notes_verify(line: str, data: str) -> None:
    name, identity, blob = line.split("+", 2)
    public = PublicKey(base64.b64decode(blob)[1:])
    assert key_id(name, public.raw).hex() == identity
    assert verified(parse(data.encode()), name, public.raw, public.check)
    assert not verified(
        parse(data.replace("you", "thou").replace("This", "That").encode()), name, public.raw, public.check
    )


def test_a_checkpoint_reads_back_as_it_was_signed() -> None:
    note = parse(signed())
    assert parse_checkpoint(note.text) == HEAD
    assert note.text == checkpoint_text(HEAD)
    assert good(signed())


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, 10**18),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_any_tenant_and_head_round_trip(tenant: str, size: int, root: bytes, seed: bytes) -> None:
    if not tenant.isprintable():
        tenant = tenant.encode("utf-8", "replace").hex()
    key = PrivateKey(seed)
    head = Checkpoint(origin=origin(key.public.home, tenant), size=size, root=root)
    note = parse(sign_checkpoint(head, key.public.raw, key.sign))
    assert parse_checkpoint(note.text) == head
    assert verified(note, head.origin, key.public.raw, key.public.check)


@given(st.data())
def test_any_changed_byte_fails(data: st.DataObject) -> None:
    note = bytearray(signed())
    place = data.draw(st.integers(0, len(note) - 1))
    note[place] ^= data.draw(st.integers(1, 255))
    try:
        assert not good(bytes(note))
    except AuditError:
        return


def test_a_note_of_another_log_or_key_does_not_verify() -> None:
    assert not good(signed(), origin(KEY.public.home, "other"))
    other = PrivateKey(bytes(32))
    assert not verified(parse(signed()), HEAD.origin, other.public.raw, other.public.check)


def test_signatures_of_strangers_are_ignored_and_a_bad_one_of_ours_is_not() -> None:
    stranger = b"\xe2\x80\x94 witness.example/w " + base64.b64encode(bytes(68)) + b"\n"
    assert good(signed() + stranger)
    ours = base64.b64encode(key_id(HEAD.origin, KEY.public.raw) + bytes(64))
    assert not good(signed() + b"\xe2\x80\x94 " + HEAD.origin.encode() + b" " + ours + b"\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "blank line"),
        (b"text\n", "blank line"),
        (b"text\n\nno newline at the end", "blank line"),
        (b"text\n\n- ascii AAAAAAAA\n", "em dash"),
        ("text\n\n— name !!!!\n".encode(), "em dash"),
        ("text\n\n— na+me AAAAAAAA\n".encode(), "em dash"),
        ("text\n\n— name AAAA\n".encode(), "em dash"),
        (b"te\xffxt\n\n", "UTF-8"),
        (b"te\x00xt\n\n", "control"),
        (b"te\r\nxt\n\n", "control"),
        (b"x" * 70_000, "bytes"),
    ],
)
def test_what_is_no_note_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(AuditError, match=reason):
        parse(data)


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lines"),
        ("log\n1\n", "lines"),
        (f"\n1\n{ROOT}\n", "lines"),
        (f"log\n01\n{ROOT}\n", "size"),
        (f"log\n-1\n{ROOT}\n", "size"),
        (f"log\n١\n{ROOT}\n", "size"),
        ("log\n1\nAAAA\n", "root"),
        ("log\n1\n" + ROOT[:-2] + "B=\n", "root"),
        (f"log\n1\n{ROOT}\n\n", "lines"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(AuditError, match=reason):
        parse_checkpoint(text)


def test_extension_lines_are_allowed_when_read() -> None:
    assert parse_checkpoint(f"log\n1\n{ROOT}\nextra\n") == Checkpoint("log", 1, bytes(32))


def test_a_name_with_spaces_or_plus_cannot_be_signed() -> None:
    for name in ("a b", "a+b", "a\nb", ""):
        with pytest.raises(ValueError, match="cannot name"):
            checkpoint_text(Checkpoint(name, 1, bytes(32)))


def test_origin_keeps_odd_tenants_apart() -> None:
    names = ["default", "a/b", "a+b", "a b", "*", "a%2Fb", "é"]
    assert len({origin("home", name) for name in names}) == len(names)
    assert origin("home", "default") == "holdfast/home/default"
