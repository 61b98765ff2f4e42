# SPDX-License-Identifier: Apache-2.0
"""Why a VM ended, from libvirt's events in the order in which they come."""

import libvirt
import pytest

from hyperd.model.vm import SandboxId, VmGoneCause
from hyperd.vm.libvirt.bridge import LifecycleEvent
from hyperd.vm.libvirt.ends import Ends, cause_of

OURS = SandboxId("a" * 64)
DESTROYED = LifecycleEvent(
    "hyper", libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED
)


@pytest.mark.parametrize(
    ("detail", "cause"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, VmGoneCause.SHUTDOWN),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, VmGoneCause.CRASHED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, VmGoneCause.DESTROYED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, VmGoneCause.LOST),
        (77, VmGoneCause.LOST),
    ],
)
def test_each_end_has_a_cause(detail: int, cause: VmGoneCause) -> None:
    assert cause_of(detail) is cause


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, VmGoneCause.SHUTDOWN),
        (libvirt.VIR_DOMAIN_EVENT_CRASHED, VmGoneCause.CRASHED),
    ],
)
def test_what_the_guest_did_counts_whoever_destroys_what_is_left(said: int, cause: VmGoneCause) -> None:
    ends = Ends()
    ends.note(OURS, LifecycleEvent("hyper", said, 0))
    assert ends.cause(OURS, DESTROYED, destroyed=True) is cause


def test_a_guest_that_panics_and_is_shut_down_for_it_has_panicked() -> None:
    ends = Ends()
    ends.note(OURS, LifecycleEvent("hyper", libvirt.VIR_DOMAIN_EVENT_CRASHED, 0))
    ends.note(OURS, LifecycleEvent("hyper", libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, 0))
    assert ends.cause(OURS, DESTROYED, destroyed=True) is VmGoneCause.CRASHED


def test_who_did_nothing_was_destroyed() -> None:
    ends = Ends()
    ends.note(OURS, LifecycleEvent("hyper", libvirt.VIR_DOMAIN_EVENT_RESUMED, 0))
    failed = LifecycleEvent(
        "hyper", libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED
    )
    assert ends.cause(OURS, failed, destroyed=True) is VmGoneCause.DESTROYED
    assert ends.cause(OURS, failed, destroyed=False) is VmGoneCause.LOST


def test_what_a_vm_did_is_not_said_of_the_next() -> None:
    ends = Ends()
    shut_down = LifecycleEvent("hyper", libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, 0)
    ends.note(OURS, shut_down)
    assert ends.cause(OURS, DESTROYED, destroyed=True) is VmGoneCause.SHUTDOWN
    assert ends.cause(OURS, DESTROYED, destroyed=True) is VmGoneCause.DESTROYED
    ends.note(OURS, shut_down)
    ends.forget(OURS)
    assert ends.cause(OURS, DESTROYED, destroyed=True) is VmGoneCause.DESTROYED
