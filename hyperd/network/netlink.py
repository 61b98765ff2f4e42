# SPDX-License-Identifier: Apache-2.0
"""Netlink's errors in our words."""

import contextlib
import errno
from collections.abc import Iterator

from pyroute2.netlink.exceptions import NetlinkError

from hyperd.errors import DeniedError, ExhaustedError, UnavailableError


@contextlib.contextmanager
def network_errors(subject: str) -> Iterator[None]:
    """Translate what the kernel says about an interface; the original stays as ``__cause__``."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        evidence = str(error)
        if code in (errno.EPERM, errno.EACCES):
            raise DeniedError(
                "the network may not be changed",
                subject=subject,
                evidence=evidence,
                hint="hyperd runs as root",
            ) from error
        if code == errno.EXFULL:
            raise ExhaustedError(
                "the bridge takes no more interfaces (1,023)",
                subject=subject,
                evidence=evidence,
                hint="stop sandboxes that are not needed",
            ) from error
        raise UnavailableError("the kernel refused", subject=subject, evidence=evidence) from error
