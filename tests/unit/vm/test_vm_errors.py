# SPDX-License-Identifier: Apache-2.0
import libvirt
import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.vm import VmGoneCause
from hyperd.vm.libvirt.domain import cause_of
from hyperd.vm.libvirt.errors import kind_of


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, NotFoundError),
        (libvirt.VIR_ERR_DOM_EXIST, ExistsError),
        (libvirt.VIR_ERR_OPERATION_INVALID, WrongStateError),
        (libvirt.VIR_ERR_XML_ERROR, InvalidError),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, InvalidError),
        (libvirt.VIR_ERR_NO_MEMORY, ExhaustedError),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, TimeoutExpiredError),
        (libvirt.VIR_ERR_INTERNAL_ERROR, UnavailableError),
        (libvirt.VIR_ERR_SYSTEM_ERROR, UnavailableError),
        (999_999, UnavailableError),
    ],
)
def test_each_error_says_what_the_caller_can_do(code: int, kind: type[HyperError]) -> None:
    assert kind_of(code, "") is kind


def test_a_qemu_without_memory_is_exhausted_not_unavailable() -> None:
    message = "process exited while connecting to monitor: cannot set up guest memory 'pc.ram': Cannot allocate memory"
    assert kind_of(libvirt.VIR_ERR_INTERNAL_ERROR, message) is ExhaustedError


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
