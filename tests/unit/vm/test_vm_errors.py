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
from hyperd.vm.libvirt.errors import errors_of_existing, kind_of, libvirt_errors


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
    ("message", "last_words"),
    [
        (
            "internal error: QEMU unexpectedly closed the monitor (vm='hyper-1'): 2026: bad device\nno such file",
            "2026: bad device\nno such file",
        ),
        ("internal error: process exited while connecting to monitor: bad option", "bad option"),
        (
            "internal error: QEMU unexpectedly closed the monitor",
            "internal error: QEMU unexpectedly closed the monitor",
        ),
    ],
)
def test_a_qemu_that_ended_is_told_in_our_words_with_its_last_ones_as_evidence(message, last_words):
    error = libvirt.libvirtError("")
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 0, message, 2, "", "", "", -1, -1)
    with pytest.raises(UnavailableError) as caught, libvirt_errors("VM 1"):
        raise error
    assert (caught.value.brief, caught.value.evidence) == ("QEMU exited", last_words)


def test_a_vm_whose_qemu_ends_during_a_call_is_not_there():
    error = libvirt.libvirtError("")
    message = "internal error: End of file from qemu monitor (vm='hyper-1')"
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 0, message, 2, "", "", "", -1, -1)
    with pytest.raises(NotFoundError), errors_of_existing("VM 1"):
        raise error
