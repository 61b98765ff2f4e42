# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.sandbox.capabilities import ALL, DEFAULT, resolve

names = st.lists(st.sampled_from(ALL), max_size=5).map(tuple)


def test_nothing_asked_is_the_default_set() -> None:
    assert resolve((), (), privileged=False) is None


@given(names, names)
def test_what_is_added_is_granted_and_nothing_else_that_is_dropped(
    add: tuple[str, ...], drop: tuple[str, ...]
) -> None:
    granted = resolve(add, drop, privileged=False)
    if granted is None:
        granted = DEFAULT
    assert set(granted) == (set(DEFAULT) - set(drop)) | set(add)


@given(names)
def test_all_but_some_and_none_but_some(some: tuple[str, ...]) -> None:
    assert set(resolve(("ALL",), some, privileged=False) or ()) == set(ALL) - set(some)
    assert set(resolve(some, ("all",), privileged=False) or ()) == set(some)


def test_names_come_with_and_without_prefix_in_any_case() -> None:
    assert resolve(("net_admin",), ("ALL",), privileged=False) == ("CAP_NET_ADMIN",)
    assert resolve(("Cap_Net_Admin",), ("ALL",), privileged=False) == ("CAP_NET_ADMIN",)


def test_privileged_is_everything_but_still_reads_the_names() -> None:
    assert resolve((), ("ALL",), privileged=True) == ALL
    with pytest.raises(InvalidError, match="NOPE"):
        resolve(("NOPE",), (), privileged=True)
