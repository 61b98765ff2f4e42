# SPDX-License-Identifier: Apache-2.0
"""libvirt's errors become ours, here and nowhere else; the original stays as ``__cause__``."""

import contextlib
import re
from collections.abc import Callable, Iterator

import libvirt

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)

_MEANING: dict[int, type[HyperError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFoundError,
    libvirt.VIR_ERR_DOM_EXIST: ExistsError,
    libvirt.VIR_ERR_OPERATION_INVALID: WrongStateError,
    libvirt.VIR_ERR_XML_ERROR: InvalidError,
    libvirt.VIR_ERR_XML_DETAIL: InvalidError,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: InvalidError,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: InvalidError,
    libvirt.VIR_ERR_INVALID_ARG: InvalidError,
    libvirt.VIR_ERR_NO_MEMORY: ExhaustedError,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: TimeoutExpiredError,
    libvirt.VIR_ERR_OPERATION_DENIED: DeniedError,
    libvirt.VIR_ERR_AUTH_FAILED: DeniedError,
    libvirt.VIR_ERR_NO_SUPPORT: UnsupportedError,
}
# Followed by what QEMU printed last, if anything:
_EXITED = re.compile(
    r".*(?:unexpectedly closed the monitor|process exited while connecting to monitor)(?: \(vm='[^']*'\))?:?\s*",
)
_END_OF_MONITOR = "internal error: End of file from qemu monitor"
_NO_MEMORY_WORDS = ("Cannot allocate memory", "cannot set up guest memory")


class MonitorError(Exception):
    """QEMU understood what its monitor was told, and refused; its words."""


def kind_of(code: int, message: str) -> type[HyperError]:
    """Everything else that libvirt reports means that some process or file of its own is not there."""
    if any(words in message for words in _NO_MEMORY_WORDS):
        return ExhaustedError
    return _MEANING.get(code, UnavailableError)


@contextlib.contextmanager
def libvirt_errors(subject: str, *, evidence: Callable[[], str] = str) -> Iterator[None]:
    """Translate at the seam. ``evidence`` is asked only when there is an error."""
    try:
        yield
    except libvirt.libvirtError as error:
        message = error.get_error_message() or str(error)
        kind = kind_of(error.get_error_code() or 0, message)
        exited = _EXITED.match(message)
        if exited is None:
            raise kind(message, subject=subject, evidence=evidence()) from error
        last_words = message[exited.end() :].strip() or message
        raise kind("QEMU exited", subject=subject, evidence=evidence() or last_words) from error
    except MonitorError as error:
        raise UnavailableError("QEMU refuses", subject=subject, evidence=str(error)) from error


@contextlib.contextmanager
def errors_of_existing(subject: str) -> Iterator[None]:
    """As ``libvirt_errors``, for what only a VM that exists can do."""
    with libvirt_errors(subject):
        try:
            yield
        except libvirt.libvirtError as error:
            if is_gone(error):
                raise NotFoundError("no such VM", subject=subject) from error
            raise


def is_gone(error: libvirt.libvirtError) -> bool:
    """The domain does not exist, or not any more: what ``destroy`` wanted."""
    if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
        return True
    # Its QEMU has ended, and libvirt has heard of it by this very call.
    return (error.get_error_message() or "").startswith(_END_OF_MONITOR)
