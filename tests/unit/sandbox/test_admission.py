# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import ExhaustedError, HyperError, InvalidError
from hyperd.model.container import Sizing
from hyperd.model.vm import SandboxId
from hyperd.sandbox import Admission, Ledger
from hyperd.sandbox.admission import OVERHEAD_MIB

ids = st.sampled_from([SandboxId(digit) for digit in "abcdef"])
sizings = st.builds(Sizing, st.integers(0, 6), st.integers(0, 1500))
requests = st.lists(st.tuples(st.sampled_from(["admit", "release"]), ids, sizings), max_size=40)


@given(requests)
def test_what_is_admitted_always_fits(history: list[tuple[str, SandboxId, Sizing]]) -> None:
    ledger = Ledger(Admission(2048, 3, 4))
    for verb, sandbox_id, sizing in history:
        before = ledger.admission
        try:
            if verb == "admit":
                ledger.admit(sandbox_id, sizing)
            else:
                ledger.release(sandbox_id)
        except HyperError:
            assert ledger.admission is before
        held = ledger.admission
        assert held.held_memory_mib <= 2048
        assert len(held.held) <= 3
        assert len(dict(held.held)) == len(held.held)
        assert (sandbox_id in dict(held.held)) or verb == "release" or held is before


def test_the_memory_of_each_qemu_counts_too() -> None:
    held = Admission(2 * (256 + OVERHEAD_MIB) + 255, 9, 1)
    for name in "ab":
        held = held.admit(SandboxId(name), Sizing(1, 256))
    with pytest.raises(ExhaustedError, match="for its QEMU, 255 of"):
        held.admit(SandboxId("c"), Sizing(1, 256))
    with pytest.raises(InvalidError, match="more than the host has"):
        Admission(1024, 9, 1).admit(SandboxId("c"), Sizing(1, 1024))


@given(requests)
def test_releasing_everything_gives_everything_back(history: list[tuple[str, SandboxId, Sizing]]) -> None:
    held = Admission(2048, 3, 4)
    for _, sandbox_id, sizing in history:
        held = held.hold(sandbox_id, sizing)
    for _, sandbox_id, _ in history:
        held = held.release(sandbox_id)
    assert held == Admission(2048, 3, 4)


def test_a_vm_that_exists_is_counted_even_when_it_does_not_fit() -> None:
    ledger = Ledger(Admission(1024, 1, 1))
    ledger.hold(SandboxId("a"), Sizing(8, 4096))
    with pytest.raises(ExhaustedError, match="no more than 1"):
        ledger.admit(SandboxId("b"), Sizing(1, 64))


@pytest.mark.parametrize("sizing", [Sizing(1, 63), Sizing(1, 4096), Sizing(0, 64), Sizing(9, 64)])
def test_what_could_never_fit_is_invalid(sizing: Sizing) -> None:
    with pytest.raises(InvalidError):
        Admission(1024, 1, 8).admit(SandboxId("a"), sizing)


def test_a_sandbox_that_starts_again_is_counted_once() -> None:
    held = Admission(1024 + OVERHEAD_MIB, 1, 8).admit(SandboxId("a"), Sizing(1, 1024))
    assert held.admit(SandboxId("a"), Sizing(1, 1024)) == held


@given(requests, st.integers(1, 8), sizings)
def test_several_are_admitted_as_one_after_the_other_or_not_at_all(
    history: list[tuple[str, SandboxId, Sizing]], count: int, sizing: Sizing
) -> None:
    held = Admission(4096, 6, 4)
    for verb, sandbox_id, each in history:
        if verb == "admit" and each.vcpus:
            held = held.hold(sandbox_id, each)
    wanted = [SandboxId(f"new{number}") for number in range(count)]
    one_by_one: Admission | None = held
    try:
        for sandbox_id in wanted:
            assert one_by_one is not None
            one_by_one = one_by_one.admit(sandbox_id, sizing)
    except HyperError:
        one_by_one = None
    if one_by_one is None:
        with pytest.raises((ExhaustedError, InvalidError)):
            held.admit_all(wanted, sizing)
    else:
        assert held.admit_all(wanted, sizing) == one_by_one


@given(requests, st.lists(sizings, max_size=4))
def test_there_is_room_for_more_when_as_many_would_be_admitted(
    history: list[tuple[str, SandboxId, Sizing]], further: list[Sizing]
) -> None:
    held = Admission(2048, 6, 4)
    for _, sandbox_id, sizing in history:
        held = held.hold(sandbox_id, sizing)
    both = held
    for number, sizing in enumerate(further):
        both = both.hold(SandboxId(f"further {number}"), sizing)
    fits = both.held_memory_mib <= 2048 and len(both.held) <= 6
    assert held.has_room_for(further) == fits
