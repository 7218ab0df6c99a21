"""A short sample of the fuzz target; ``make fuzz`` runs it under atheris for as long as one likes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.testing.egress_fuzz import SEEDS, one_input


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_pass(seed: bytes) -> None:
    one_input(seed)


@settings(max_examples=400)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=5),
)
@example(seed=SEEDS[0], edits=[(0, 0, b"\r\n")])
def test_edited_messages_keep_one_meaning_or_are_refused(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(seed)
    for at, length, put in edits:
        data[at : at + length] = put
    one_input(bytes(data))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(data: bytes) -> None:
    one_input(data)
