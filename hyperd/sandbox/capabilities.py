# SPDX-License-Identifier: Apache-2.0
"""Linux capabilities as Docker's --cap-add, --cap-drop and --privileged mean them."""

from hyperd.errors import InvalidError

# include/uapi/linux/capability.h of the guest kernel, in the order of their numbers
ALL = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
# moby oci/caps/defaults.go
DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
        "AUDIT_WRITE"
    ).split()
)


def resolve(add: tuple[str, ...], drop: tuple[str, ...], *, privileged: bool) -> tuple[str, ...] | None:
    """The capabilities of a container, or None for exactly the default set. Raises InvalidError for an unknown name."""
    added, dropped = {_known(name) for name in add}, {_known(name) for name in drop}
    if privileged:
        return ALL
    if not added and not dropped:
        return None
    # moby oci/caps/utils.go, TweakCapabilities: what is added wins over what is dropped, but for "everything but"
    if "ALL" in added:
        granted = set(ALL) - dropped
    elif "ALL" in dropped:
        granted = added
    else:
        granted = (set(DEFAULT) - dropped) | added
    return tuple(name for name in ALL if name in granted)


def _known(name: str) -> str:
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in ALL:
        raise InvalidError("is not a capability", subject=repr(name), hint="see capabilities(7)")
    return full
