# SPDX-License-Identifier: Apache-2.0
"""Whether one more sandbox fits on this host: a pure struct, so that it can be tested by properties."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.model.container import Sizing
from hyperd.model.vm import SandboxId

MIN_MEMORY_MIB = 64  # below it the guest kernel and agent do not come up
MAX_VCPUS = 255
# What QEMU takes of the host beyond its guest's memory: measured resident under TCG with its translated code, 135 MiB.
# KVM has no such buffer; which it will be is not known when a container is created, and the safe side is more.
OVERHEAD_MIB = 136


@dataclass(frozen=True, slots=True)
class Admission:
    """What the host offers and who holds how much of it."""

    memory_mib: int  # for guests and their QEMUs
    max_sandboxes: int
    max_vcpus_each: int
    held: tuple[tuple[SandboxId, Sizing], ...] = ()
    overhead_mib: int = OVERHEAD_MIB

    @property
    def held_memory_mib(self) -> int:
        return sum(sizing.memory_mib + self.overhead_mib for _, sizing in self.held)

    @property
    def largest_mib(self) -> int:
        """What one sandbox can have when it is alone."""
        return max(self.memory_mib - self.overhead_mib, 0)

    def admit(self, sandbox_id: SandboxId, sizing: Sizing) -> "Admission":
        """Raises InvalidError when it could never fit, ExhaustedError when it does not fit now."""
        require_sane(sizing, max_vcpus=self.max_vcpus_each, largest_mib=self.largest_mib)
        others = self.release(sandbox_id)
        if len(others.held) >= self.max_sandboxes:
            raise ExhaustedError(
                f"{len(others.held)} sandboxes run, and no more than {self.max_sandboxes} may",
                hint="stop one, or raise [vm] max_sandboxes",
            )
        free_mib = self.memory_mib - others.held_memory_mib
        if sizing.memory_mib + self.overhead_mib > free_mib:
            raise ExhaustedError(
                f"needs {sizing.memory_mib} MiB of memory and {self.overhead_mib} MiB for its QEMU, "
                f"{max(free_mib, 0)} of {self.memory_mib} MiB are free",
                hint="stop a sandbox, ask for less with --memory, or raise [vm] memory_overcommit",
            )
        return others.hold(sandbox_id, sizing)

    def has_room_for(self, further: Sequence[Sizing]) -> bool:
        """Whether so many more would fit beside those who hold something."""
        needed_mib = sum(sizing.memory_mib + self.overhead_mib for sizing in further)
        return (
            len(self.held) + len(further) <= self.max_sandboxes
            and self.held_memory_mib + needed_mib <= self.memory_mib
        )

    def admit_all(self, sandbox_ids: Sequence[SandboxId], sizing: Sizing) -> "Admission":
        """All or none, each of that size. Raises InvalidError, ExhaustedError with the arithmetic."""
        require_sane(sizing, max_vcpus=self.max_vcpus_each, largest_mib=self.largest_mib)
        count = len(sandbox_ids)
        if len(self.held) + count > self.max_sandboxes:
            raise ExhaustedError(
                f"{len(self.held)} sandboxes run, {count} more are asked for, no more than {self.max_sandboxes} may",
                hint="stop some, ask for fewer, or raise [vm] max_sandboxes",
            )
        needed_mib = count * (sizing.memory_mib + self.overhead_mib)
        free_mib = max(self.memory_mib - self.held_memory_mib, 0)
        if needed_mib > free_mib:
            raise ExhaustedError(
                f"{count} x ({sizing.memory_mib} MiB of memory + {self.overhead_mib} MiB for its QEMU) = "
                f"{needed_mib} MiB are needed, {free_mib} of {self.memory_mib} MiB are free",
                hint="ask for fewer, stop some sandboxes, or raise [vm] memory_overcommit",
            )
        return replace(self, held=(*self.held, *((sandbox_id, sizing) for sandbox_id in sandbox_ids)))

    def hold(self, sandbox_id: SandboxId, sizing: Sizing) -> "Admission":
        """Count one that exists, whatever it takes."""
        others = self.release(sandbox_id)
        return replace(others, held=(*others.held, (sandbox_id, sizing)))

    def release(self, sandbox_id: SandboxId) -> "Admission":
        return replace(self, held=tuple(entry for entry in self.held if entry[0] != sandbox_id))


def require_sane(sizing: Sizing, *, max_vcpus: int, largest_mib: int) -> None:
    if sizing.memory_mib < MIN_MEMORY_MIB:
        raise InvalidError(
            f"{sizing.memory_mib} MiB of memory are too little to boot a guest",
            hint=f"ask for at least {MIN_MEMORY_MIB} MiB with --memory",
        )
    if sizing.memory_mib > largest_mib:
        raise InvalidError(
            f"{sizing.memory_mib} MiB of memory are more than the host has for one sandbox, {largest_mib} MiB",
            hint="[vm] host_reserve_mib is kept for the host, and each QEMU takes some for itself",
        )
    if not 1 <= sizing.vcpus <= max_vcpus:
        raise InvalidError(f"{sizing.vcpus} CPUs are not between 1 and {max_vcpus}", hint="see --cpus")
