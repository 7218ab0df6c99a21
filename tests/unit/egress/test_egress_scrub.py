"""No secret comes back, in whatever spelling and however the answer was cut into pieces."""

from __future__ import annotations

import base64
import itertools
import random
import string
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.egress.scrub import MARK, SHORTEST, Secrets
from holdfast.egress.spellings import ENCODINGS, follow, forms, steps
from holdfast.testing.reflect import SPELLINGS

SECRET = 'sk-live_4f+Q/9aZ"x=7Kp2&Lm~é'


def spelt(name: str, secret: str) -> bytes:
    return SPELLINGS[name][1](secret)


def streamed(secrets: Secrets, data: bytes, cuts: Sequence[int]) -> bytes:
    """Through the scrubber in pieces, checking that it holds back no more than it may."""
    scrubber = secrets.stream()
    out = []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        out.append(scrubber.feed(data[start:end]))
        assert len(scrubber._waiting) <= secrets.lag
    return b"".join([*out, scrubber.finish()])


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_recognised(name: str) -> None:
    got = Secrets([SECRET]).scrub(b'{"you sent": ">>' + spelt(name, SECRET) + b'<<"}')
    before, mark, after = got.partition(MARK)
    assert mark
    assert before.startswith(b'{"you sent": ">>')
    assert after.endswith(b'<<"}')
    # What is left of the spelling belongs to what stood around the secret.
    left = got.replace(MARK, b"").removeprefix(b'{"you sent": ">>').removesuffix(b'<<"}')
    assert len(left) <= (70 if name == "base64 with line breaks" else 9), left


@pytest.mark.parametrize("name", SPELLINGS)
def test_without_its_encoding_the_secret_gets_through(name: str) -> None:
    """The twin of the test above: each encoding is needed."""
    left = [encoding for encoding in ENCODINGS if encoding != SPELLINGS[name][0]]
    text = b">>" + spelt(name, SECRET) + b"<<"
    assert Secrets([SECRET], left).scrub(text) != Secrets([SECRET]).scrub(text)


def test_at_least_ten_encodings_are_told_apart() -> None:
    assert len(ENCODINGS) >= 10
    assert {encoding for encoding, _ in SPELLINGS.values()} == set(ENCODINGS)


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)
PIECES = st.lists(st.integers(0, 5000), max_size=25)


@settings(max_examples=30, deadline=None)
@given(
    SECRETS,
    SECRETS,
    st.lists(st.tuples(st.sampled_from(sorted(SPELLINGS)), st.booleans(), st.binary(max_size=12))),
    PIECES,
)
def test_where_a_stream_was_cut_makes_no_difference(
    one: str, two: str, parts: list[tuple[str, bool, bytes]], cuts: list[int]
) -> None:
    secrets = Secrets([one, two])
    data = b"".join(spelt(name, one if first else two) + noise for name, first, noise in parts)
    whole = secrets.scrub(data)
    assert streamed(secrets, data, cuts) == whole
    assert streamed(secrets, data, range(len(data))) == whole
    for secret in (one, two):
        assert secret.encode() not in whole
        assert not any(follow(form, whole, at)[0] > 0 for form in map(steps, forms(secret)) for at in range(len(whole)))


@settings(max_examples=60, deadline=None)
@given(SECRETS, st.binary(max_size=30), st.binary(max_size=30), st.sampled_from(sorted(SPELLINGS)), PIECES)
def test_a_secret_in_any_surroundings_is_found(
    secret: str, before: bytes, after: bytes, name: str, cuts: list[int]
) -> None:
    text = spelt(name, secret)
    got = streamed(Secrets([secret]), before + text + after, cuts)
    assert MARK in got
    assert text not in got


def test_what_holds_no_secret_is_not_held_back() -> None:
    scrubber = Secrets([SECRET, "another-secret"]).stream()
    for event in (b'data: {"text": "hello"}\n\n', b'data: {"text": "100% sure"}\n\n', b"\x00\xff\r\n"):
        assert scrubber.feed(event) == event
    assert scrubber.finish() == b""


def test_what_may_become_a_secret_waits_until_it_is_known() -> None:
    scrubber = Secrets(["hunter2-hunter2"]).stream()
    assert scrubber.feed(b"the hunt") == b"the "
    assert scrubber.feed(b"er") == b""
    assert scrubber.feed(b" went home; hunter2-hunter") == b"hunter went home; "
    assert scrubber.feed(b"2!") == MARK + b"!"
    assert scrubber.feed(b"hunter2-hun") == b""
    assert scrubber.finish() == b"hunter2-hun"


def test_the_longer_of_two_secrets_wins() -> None:
    secrets = Secrets(["secret-one", "secret-one-and-more"])
    assert secrets.scrub(b"a secret-one-and-more b secret-one c") == b"a [redacted] b [redacted] c"
    assert streamed(secrets, b"a secret-one-and-mo", range(20)) == b"a [redacted]-and-mo"


@pytest.mark.parametrize("length", [100, 1000])
def test_a_long_secret_leaves_nothing(length: int) -> None:
    secret = "".join(random.Random(length).choices(string.printable[:94], k=length))
    secrets = Secrets([secret])
    for name in ("as it is", "JSON", "hex", "base64, 1 before", "percent, everything", "reversed"):
        got = secrets.scrub(b"<" + spelt(name, secret) + b">")
        assert len(got.replace(MARK, b"")) < 10, name


def test_a_text_that_always_nearly_is_the_secret_is_let_through() -> None:
    text = b"sk-ant-api03-0sk-ant-api03-\\u0073k%2Dant" * 200
    assert streamed(Secrets(["sk-ant-api03-" + "0123456789"]), text, range(0, len(text), 7)) == text


def test_neighbours_share_a_character_in_base64() -> None:
    secret = "abcdefghijk"
    got = Secrets([secret]).scrub(base64.b64encode(secret.encode() * 5))
    assert got.replace(MARK, b"") in (b"", b"=", b"==")


def test_headers_and_messages() -> None:
    secrets = Secrets(["hunter2-hunter2"])
    got = secrets.headers(
        ((b"location", b"https://x/?key=hunter2-hunter2"), (b"x-hunter2-hunter2", b"1"), (b"a", b"b"))
    )
    assert got == ((b"location", b"https://x/?key=[redacted]"), (b"redacted", b"1"), (b"a", b"b"))
    assert secrets.text("the key hunter2%2Dhunter2 — é") == "the key [redacted] — é"
    assert secrets.text("nothing — é\udc80") == "nothing — é\udc80"


def test_without_secrets_nothing_changes() -> None:
    for secrets in (Secrets([]), Secrets(["x" * (SHORTEST - 1)])):
        assert not secrets
        assert secrets.stream().feed(b"xxxxxxxx") == b"xxxxxxxx"
        assert secrets.headers(((b"a", b"xxxxxxxx"),)) == ((b"a", b"xxxxxxxx"),)
