# SPDX-License-Identifier: Apache-2.0
"""Connections to libvirt. An embedded one is opened once and kept until the process ends.

libvirt registers its QEMU driver anew at each open of `qemu:///embed`, and the twentieth or so fails with "Too many
drivers, cannot register QEMU"; nor can a process ever open a second root.
"""

import contextlib
import threading

import libvirt

_guard = threading.Lock()
_kept: dict[str, libvirt.virConnect] = {}


def open_connection(uri: str) -> libvirt.virConnect:
    """Blocks; the event thread must run already. libvirtError passes."""
    with _guard:
        connection = _kept.get(uri)
        if connection is None:
            connection = libvirt.open(uri)
            if uri.startswith("qemu:///embed"):
                _kept[uri] = connection
        return connection


def close_connection(connection: libvirt.virConnect) -> None:
    """Blocks. The VMs run on."""
    if connection not in _kept.values():
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()
