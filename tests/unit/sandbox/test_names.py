# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.sandbox import names


class Everything:
    def __contains__(self, name: object) -> bool:
        return True


def test_an_invented_name_is_valid_and_free() -> None:
    taken: set[str] = set()
    for _ in range(500):
        name = names.invent(taken)
        names.require_valid(name)
        assert name not in taken
        taken.add(name)


def test_when_every_name_is_taken_it_says_so() -> None:
    with pytest.raises(ExhaustedError):
        names.invent(Everything())


@given(st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", fullmatch=True))
def test_docker_s_names_are_names(name: str) -> None:
    names.require_valid(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "a" * 129])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        names.require_valid(name)
