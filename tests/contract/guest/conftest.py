# SPDX-License-Identifier: Apache-2.0
"""One body of tests, two subjects: the fake agent behind sockets, and the real one running on this host.

The real agent's binary is $HYPER_AGENT_BINARY, else what the set-up put into build/assets. It runs in a mount, UTS and
network namespace of its own; its containers' root is a directory with a few of the host's programs.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperd.guest import AgentDialer, Guest
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    LayerSource,
    ProcessExit,
    ProcessPlan,
    Stream,
    WritableSource,
)
from tests.fakes.agent import serving
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import Script

BOX = ContainerId("b" * 64)
ENV = ("PATH=/bin",)
PROGRAMS = ("sh", "cat", "head", "yes", "sleep", "true")
FLOOD_LINE = b"hyper~}^]~~}}\n"
FLOOD_BYTES = 100_000_000


class Flood:
    """What ``yes LINE | head -c N`` writes."""

    def __iter__(self):
        block = FLOOD_LINE * 4000
        for at in range(0, FLOOD_BYTES, len(block)):
            yield Stream.STDOUT, block[: FLOOD_BYTES - at]


@dataclass(frozen=True)
class Program:
    """A command for the real agent, and what the fake is to make of it."""

    args: tuple[str, ...]
    script: Script = field(default_factory=Script)
    stdin: bool = False


TWO_STREAMS = Program(
    ("sh", "-c", "echo hi; echo oh >&2; exit 3"),
    Script([(Stream.STDOUT, b"hi\n"), (Stream.STDERR, b"oh\n")], ProcessExit(3)),
)
SLEEP = Program(("sleep", "1000"))
TRUE = Program(("true",), Script(exit=ProcessExit(0)))
CAT = Program(("cat",), Script(echo=True), stdin=True)
ABSENT = Program(("/bin/absent",), Script(exit=ProcessExit(127, start_error="/bin/absent: not found")))
FLOOD = Program(
    ("sh", "-c", f"yes '{FLOOD_LINE.decode().strip()}' | head -c {FLOOD_BYTES}"),
    Script(Flood(), ProcessExit(0)),
)
ALL = (TWO_STREAMS, SLEEP, TRUE, CAT, ABSENT, FLOOD)


@dataclass
class Site:
    """A running agent."""

    control: Path
    stream: Path
    layers: tuple[LayerSource, ...] = ()
    writable: WritableSource | None = None
    pid: int = 0  # of the real agent

    @property
    def is_real(self) -> bool:
        return bool(self.layers)

    async def dial(self) -> Guest:
        return await AgentDialer().connect(self.control, self.stream, timeout_s=20, subject="box")

    @contextlib.asynccontextmanager
    async def guest(self) -> AsyncIterator[Guest]:
        guest = await self.dial()
        try:
            yield guest
        finally:
            await guest.close()

    def container(self, program: Program, container_id: ContainerId = BOX) -> ContainerPlan:
        process = ProcessPlan(program.args, ENV, stdin=program.stdin)
        return ContainerPlan(container_id, self.layers, self.writable, readonly_root=False, process=process)

    async def run(self, guest: Guest, program: Program) -> None:
        await guest.create_container(self.container(program))
        await guest.start_container(BOX)


@pytest.fixture(params=["fake", "agent"])
async def site(request, tmp_path_factory):
    with tempfile.TemporaryDirectory() as short:  # a socket's path has room for 107 bytes
        if request.param == "fake":
            agent = FakeAgent(scripts={" ".join(program.args): program.script for program in ALL})
            async with serving(agent, Path(short)) as peer:
                yield Site(peer.control.path, peer.stream.path)
        else:
            async with real_agent(Path(short), host_programs(tmp_path_factory)) as it:
                yield it


def agent_binary() -> Path:
    named = os.environ.get("HYPER_AGENT_BINARY")
    path = Path(named) if named else Path(__file__).parents[3] / "build" / "assets" / "hyper-agent"
    if not os.access(path, os.X_OK):
        raise AssertionError(f"no agent at {path}: `make test` builds it, or name one in HYPER_AGENT_BINARY")
    return path


def host_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory, made once per run."""
    root = tmp_path_factory.getbasetemp() / "guest-root"
    if root.exists():
        return root
    for directory in ("bin", "proc", "dev", "sys", "etc", "tmp"):
        (root / directory).mkdir(parents=True)
    for name in PROGRAMS:
        source = shutil.which(name)
        assert source, name
        shutil.copy(source, root / "bin" / name)
        for word in subprocess.run(
            ["ldd", source], capture_output=True, text=True, check=True
        ).stdout.split():
            if word.startswith("/"):
                target = root / word.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, target)
    return root


@contextlib.asynccontextmanager
async def real_agent(directory: Path, root: Path) -> AsyncIterator[Site]:
    control, stream, upper = directory / "control", directory / "stream", directory / "upper"
    upper.mkdir()
    # No cgroups: those of the host are none of the agent's business.
    script = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
    argv = ["unshare", "--mount", "--uts", "--net", "sh", "-c", script, "sh"]
    child = await asyncio.create_subprocess_exec(
        *argv, str(agent_binary()), "--serve-unix", str(control), str(stream), start_new_session=True
    )
    site = Site(
        control,
        stream,
        layers=(LayerSource(str(root), 0, "dir"),),
        writable=WritableSource(str(upper), "box", "dir"),
        pid=child.pid,
    )
    try:
        yield site
    finally:
        async with asyncio.timeout(30):
            if child.returncode is None:
                async with site.guest() as guest:
                    for container in await guest.list_containers():
                        await guest.delete_container(container.container_id)
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


async def collect(guest: Guest, process_id=FIRST_PROCESS) -> dict[Stream, bytes]:
    """All output of a process, acknowledged as it comes."""
    found = {Stream.STDOUT: b"", Stream.STDERR: b""}
    reader = guest.read_output(BOX, process_id, 0)
    async for chunk in reader:
        found[chunk.stream] += chunk.data
        reader.acknowledge(chunk.end_offset)
    return found
