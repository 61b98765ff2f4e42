# SPDX-License-Identifier: Apache-2.0
"""systemd's readiness protocol, sd_notify(3): one datagram; nothing where there is no systemd."""

import os
import socket


def notify(state: str) -> None:
    """``READY=1``, ``STOPPING=1``. Never fails: readiness is news, not work."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return
