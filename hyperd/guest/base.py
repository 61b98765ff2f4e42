# SPDX-License-Identifier: Apache-2.0
"""The agent as the host sees it: one ``Guest`` per connected VM."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from hyperd.model.guest import (
    AgentHello,
    Change,
    ContainerId,
    ContainerPlan,
    ContainerStatus,
    GuestIdentity,
    GuestStats,
    GuestWiring,
    OutputChunk,
    PathStat,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    TerminalSize,
    WriteOptions,
)


class OutputReader(Protocol):
    """One process's output. Iterate it; acknowledge what is stored safely."""

    def __aiter__(self) -> AsyncIterator[OutputChunk]:
        """Ends when both streams have ended. Raises UnavailableError when the connection is lost."""

    def acknowledge(self, offset: int) -> None:
        """Let the agent forget everything before ``offset``. Never blocks."""


class InputWriter(Protocol):
    async def write(self, data: bytes) -> None:
        """Returns when the agent can take more; at most 64 KiB are split by the callee. Raises UnavailableError."""

    async def close(self, *, eof: bool) -> None:
        """End the call; with ``eof`` close the process's standard input too."""


class ProcessRun(Protocol):
    """One exec'd process. Only ``start`` makes it; else it is one that was started before, over another connection."""

    async def start(self, plan: ProcessPlan) -> int:
        """Return its pid in the guest when it was executed, or could not be: that is its exit."""

    async def carry(self) -> None:
        """To be run beside ``output`` and ``wait``, which get nothing without it. Returns when all is there."""

    def output(self, from_offset: int) -> OutputReader: ...

    async def wait(self) -> ProcessExit: ...

    async def end(self) -> None:
        """Once it has exited: the agent forgets it and its output."""

    def close(self) -> None:
        """Nobody waits any more. Idempotent; what has not exited goes on."""


class Guest(Protocol):
    """Every call has a deadline of its own but wait_process and the streams, which end with the connection.

    All raise UnavailableError when the agent is gone, TimeoutExpiredError when it does not answer.
    """

    hello: AgentHello

    async def configure(self, identity: GuestIdentity) -> None:
        """Give the guest its identity. Idempotent, and all that a clone needs before its processes may run:

        RNG reseeded, wall clock stepped (verified: raises UnavailableError unless it is 50 ms off at most), disks and
        NICs that no driver holds bound, MACs and addresses replaced, names and ids of its containers, forkpoints.
        It thaws nothing.
        """

    async def rewire(self, wiring: GuestWiring) -> None:
        """Its links and how it finds names, while containers run; what stays keeps its connections. Idempotent.

        Raises UnsupportedError for an agent of before there was such a thing.
        """

    async def set_clock(self) -> None:
        """Step the guest's wall clock to the host's, verified as in ``configure``: after a pause."""

    async def release_devices(self) -> None:
        """Make disks and NICs ready for clones: unbound, or such that a clone finds its own behind them.

        Raises WrongStateError when a container exists.
        """

    async def freeze(self) -> None:
        """Stop every container's processes, sync, and freeze the writable file systems. Returns when all stand still.

        Idempotent. They stand still until ``thaw``, in the clones of what is saved then, too.
        """

    async def thaw(self) -> None:
        """Undo ``freeze``. Idempotent; nothing frozen is success."""

    async def create_container(self, plan: ContainerPlan) -> int:
        """Return the first process's pid in the guest. InvalidError: the image or the plan is wrong."""

    async def start_container(self, container_id: ContainerId) -> ProcessExit | None:
        """Return when the first process was executed; its exit, with ``start_error``, when it could not be."""

    async def delete_container(self, container_id: ContainerId) -> None: ...

    async def list_containers(self) -> list[ContainerStatus]: ...

    async def end_rehearsal(self, container_id: ContainerId) -> None:
        """Delete a container that was only a trial, with all that it wrote, and be ready for the first one again.

        What a template had made ahead for its clones is there once more. Raises NotFoundError, WrongStateError while
        another container exists, TimeoutExpiredError when a disk stays mounted.
        """

    async def release_disks(self, serials: Sequence[str]) -> None:
        """Return when nobody in the guest has them mounted: all that was written is on them, and they can be unplugged.

        One that is not there is success. Raises WrongStateError while a container has one, TimeoutExpiredError.
        """

    async def exec_process(
        self, container_id: ContainerId, process_id: ProcessId, plan: ProcessPlan
    ) -> int: ...

    def run_process(self, container_id: ContainerId, process_id: ProcessId) -> ProcessRun:
        """As exec_process, read_output, wait_process and forget_process, with as little ado as the agent allows."""

    async def signal(
        self, container_id: ContainerId, process_id: ProcessId, signal: int, *, everyone: bool = False
    ) -> bool:
        """Return whether it was delivered; False: the process had exited."""

    async def resize(self, container_id: ContainerId, process_id: ProcessId, size: TerminalSize) -> None: ...

    async def wait_process(self, container_id: ContainerId, process_id: ProcessId) -> ProcessExit: ...

    async def forget_process(self, container_id: ContainerId, process_id: ProcessId) -> None: ...

    def read_output(
        self, container_id: ContainerId, process_id: ProcessId, from_offset: int
    ) -> OutputReader: ...

    def write_input(self, container_id: ContainerId, process_id: ProcessId) -> InputWriter: ...

    async def stats(self, container_id: ContainerId | None = None) -> GuestStats: ...

    async def open_root(self, plan: ContainerPlan) -> None:
        """Mount the root file system of ``plan`` and start nothing, so that its files can be read and written.

        ``delete_container`` unmounts it. InvalidError: the image or the plan is wrong.
        """

    async def grow_volume(self, serial: str, size_bytes: int) -> None:
        """Its file system takes all of a disk of that size, which the guest may hear of only now.

        Raises NotFoundError unless it is mounted for writing, UnsupportedError for an agent that is too old.
        """

    async def freeze_volume(self, serial: str, timeout_s: float) -> None:
        """Its file system is whole on the disk; nobody writes until ``thaw_volume`` or the end of that time.

        Raises NotFoundError unless it is mounted for writing, WrongStateError when it stands still already.
        """

    async def thaw_volume(self, serial: str) -> bool:
        """Whether it stood still until now. Idempotent."""

    async def open_volume(
        self,
        container_id: ContainerId,
        serial: str,
        filesystem: str,
        directory: str,
        *,
        readonly: bool = False,
    ) -> None:
        """Mount a volume alone as if it were a container's root: for ``write_tree`` and ``read_tree``.

        ``delete_container`` unmounts it.
        """

    def read_layer(self, container_id: ContainerId, *, freeze: bool) -> AsyncGenerator[bytes, None]:
        """What the container changed, as an OCI layer: a plain tar in pieces of at most 256 KiB. Close it to end early.

        ``freeze``: its processes stand still until the iterator is closed. Raises NotFoundError, WrongStateError (a
        file changed under it), TimeoutExpiredError (nothing came for a minute); so do the next three.
        """

    def list_changes(self, container_id: ContainerId) -> AsyncGenerator[Change, None]:
        """In order of paths."""

    def read_tree(
        self, container_id: ContainerId, path: bytes, *, follow_link: bool = False
    ) -> AsyncGenerator[PathStat | bytes, None]:
        """First the PathStat, then a tar whose top entry is the path's last part. NotFoundError: no such path."""

    def read_root(self, container_id: ContainerId) -> AsyncGenerator[bytes, None]:
        """The whole root file system as a tar, without its mounts."""

    async def write_tree(
        self, container_id: ContainerId, options: WriteOptions, data: AsyncIterator[bytes]
    ) -> None:
        """A tar into a directory. Raises NotFoundError, InvalidError (no tar, no directory), ExhaustedError (full)."""

    async def shutdown(self, timeout_s: float) -> None:
        """Sync, unmount, power off. Returns when the agent has answered."""

    async def close(self) -> None:
        """Hang up. The guest goes on."""


class GuestDialer(Protocol):
    async def connect(
        self, control_socket: Path, stream_socket: Path, *, timeout_s: float, subject: str
    ) -> Guest:
        """Connect and say hello on both ports.

        Raises TimeoutExpiredError when no agent answers in time, UnsupportedError when its protocol version is
        another one (says which side is older), UnavailableError when the socket is refused or closed.
        """
