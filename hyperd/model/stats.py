# SPDX-License-Identifier: Apache-2.0
"""What containers use, as counters: whoever wants a rate asks twice."""

from dataclasses import dataclass

from hyperd.model.vm import SandboxId


@dataclass(frozen=True, slots=True)
class VmUsage:
    """Of a VM's process on the host, since that began."""

    read_at_ns: int  # of the host's monotonic clock
    cpu_ns: int  # the guest's and the emulation's
    memory_bytes: int | None  # PSS: pages that several share are divided among them
    block_read_bytes: int | None = None  # None: not known just now
    block_written_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WireUsage:
    """Of all taps of a sandbox, as its guest would say it, since each was made."""

    received_bytes: int = 0
    received_packets: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0
    dropped_in: int = 0  # packets beyond the rate that holds for what is sent to it
    dropped_out: int = 0  # and for what it sends


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """None: it does not run, or whoever could tell did not answer in time."""

    sandbox_id: SandboxId
    name: str
    is_running: bool
    memory_limit_bytes: int
    vm: VmUsage | None = None
    wire: WireUsage | None = None
    memory_bytes: int | None = None  # in the guest, without what it would give back
    pids: int | None = None
