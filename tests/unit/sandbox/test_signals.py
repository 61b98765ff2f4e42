# SPDX-License-Identifier: Apache-2.0
"""Signals go by Docker's names."""

import contextlib
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.sandbox import parse_signal


@given(number=st.sampled_from(signal.Signals), lower=st.booleans(), prefixed=st.booleans())
def test_a_signal_goes_by_name_and_number(number: signal.Signals, *, lower: bool, prefixed: bool) -> None:
    name = number.name if prefixed else number.name.removeprefix("SIG")
    assert parse_signal(name.lower() if lower else name) == number
    assert parse_signal(str(int(number))) == number


@given(st.text(max_size=12))
def test_a_signal_is_between_1_and_64_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert 1 <= parse_signal(text) <= 64


@pytest.mark.parametrize(
    ("text", "number"), [("RTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-14", 50), ("RTMAX", 64)]
)
def test_realtime_signals_have_names(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-9", "RTMIN+31", "RTMAX-31", "SIG", "DFL", "_DFL", "9.0", "KILL "]
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_signal(text)
