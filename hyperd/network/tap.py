# SPDX-License-Identifier: Apache-2.0
"""Taps: persistent, owned by QEMU's user, with virtio-net headers. Blocking, for the room's own thread.

Made by ioctl, since netlink cannot make them. See Documentation/networking/tuntap.rst in the kernel's source.
"""

import errno
import fcntl
import os
import socket
import struct

from hyperd.model.vm import SandboxId

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
PREFIX = "hyt"
JUDGED = 0x00200000  # the bit in the mark of packets from a tap with a policy, of which that has been asked
_NAME_LENGTH = 15
_SLOT_LETTERS = "ghijklmnopqrstuv"  # no hexadecimal digits
SLOTS = 1 + len(_SLOT_LETTERS)  # NICs of one sandbox


def tap_name(sandbox_id: SandboxId, slot: int = 0) -> str:
    """At most 15 characters, of which 12 are the id's (48 bits), or 11 and a letter for a further NIC."""
    if not slot:
        return f"{PREFIX}{sandbox_id}"[:_NAME_LENGTH]
    return f"{PREFIX}{sandbox_id}"[: _NAME_LENGTH - 1] + _SLOT_LETTERS[slot - 1]


def existing_taps(sandbox_id: SandboxId) -> dict[int, str]:
    """By slot, on a network or not."""
    found = {slot: tap_name(sandbox_id, slot) for slot in range(SLOTS)}
    return {slot: name for slot, name in found.items() if has_tap(name)}


def has_tap(name: str) -> bool:
    """Or an interface of this name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def create_tap(name: str, owner_uid: int) -> int:
    """Make it, or find it made; return its index. One that a VM holds already stays as it is."""
    tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tun, _TUNSETIFF, _request(name))
        fcntl.ioctl(tun, _TUNSETOWNER, owner_uid)
        fcntl.ioctl(tun, _TUNSETPERSIST, 1)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(tun)
    return socket.if_nametoindex(name)


def remove_unused_tap(name: str) -> bool:
    """Undo ``create_tap``; one that a VM holds stays, and so does an interface of this name that is no tap.

    Whether there is none now.
    """
    try:
        socket.if_nametoindex(name)
    except OSError:
        return True
    tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tun, _TUNSETIFF, _request(name))
        fcntl.ioctl(tun, _TUNSETPERSIST, 0)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
        return False
    finally:
        os.close(tun)
    return True


def _request(name: str) -> bytes:
    return struct.pack("16sH22x", name.encode(), _FLAGS)
