# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from hyperd.errors import InvalidError, TimeoutExpiredError, UnavailableError
from hyperd.host import process, systemd
from hyperd.host.held import HeldProcess
from hyperd.host.workers import Workers
from tests.fakes.world import eventually


async def test_output_status_and_input(tmp_path: Path) -> None:
    finished = await process.run(["sh", "-c", "cat; echo oh >&2; exit 3"], timeout_s=10, stdin=b"hi")
    assert (finished.returncode, finished.stdout, finished.stderr_tail) == (3, b"hi", "oh")
    with pytest.raises(UnavailableError, match="exit status 3") as caught:
        await process.run_checked(["sh", "-c", "echo why >&2; exit 3"], timeout_s=10)
    assert caught.value.evidence == "why"


async def test_a_child_need_not_read_what_it_is_given() -> None:
    assert (await process.run(["true"], timeout_s=10, stdin=b"x" * (1 << 22))).returncode == 0


async def test_output_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_OUTPUT_BYTES", 1000)
    finished = await process.run(["head", "-c", "1000000", "/dev/zero"], timeout_s=10)
    assert len(finished.stdout) == 1000
    assert finished.returncode == 0


async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(UnavailableError, match="cannot be executed"):
        await process.run(["no-such-program"], timeout_s=1)


async def test_at_the_deadline_the_whole_group_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; sleep 600 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(TimeoutExpiredError):
        await process.run(["sh", "-c", script], timeout_s=0.5)
    pids = [int((tmp_path / name).read_text()) for name in ("pid", "child")]
    await eventually(lambda: not [pid for pid in pids if alive(pid)])


async def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    """One that has closed its ears, and ignores the end of its input."""
    script = """
import asyncio
from hyperd.host import process

async def main():
    async with process.spawn(["sh", "-c", "trap '' TERM HUP INT; echo $$; while :; do sleep 60; done"]) as child:
        print((await child.stdout.readline()).decode(), end="", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(pid))


async def test_a_cancelled_caller_leaves_no_child() -> None:
    async with asyncio.TaskGroup() as tasks:
        ready = asyncio.Event()
        pids: list[int] = []

        async def hold() -> None:
            async with process.spawn([sys.executable, "-c", "input()"], stdin=True) as child:
                pids.append(child.pid)
                ready.set()
                await child.wait()

        task = tasks.create_task(hold())
        await ready.wait()
        task.cancel()
    await eventually(lambda: not alive(pids[0]))


async def test_one_that_is_detached_outlives_us_and_has_what_it_was_given(
    tmp_path: Path,
) -> None:
    script = "echo $$; cat <&3; echo >&4; exec sleep 600"
    (tmp_path / "given").write_text("given\n")
    with (tmp_path / "given").open("rb") as first, (tmp_path / "written").open("wb") as second:
        given = (first.fileno(), second.fileno())
        with (tmp_path / "log").open("wb") as output:
            pid = process.start_detached(["sh", "-c", script], output=output.fileno(), pass_fds=given)
    held = HeldProcess.of(pid)
    assert held is not None
    await eventually(lambda: (tmp_path / "log").read_text().split() == [str(pid), "given"])
    await eventually(lambda: (tmp_path / "written").read_text() == "\n")
    assert os.getsid(pid) == pid
    held.kill()
    await held.wait_gone()
    held.close()
    held.close()
    assert HeldProcess.of(pid) is None  # reaped
    with pytest.raises(UnavailableError, match="cannot be executed"):
        process.start_detached(["no-such-program"], output=0, pass_fds=())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_workers_carry_results_and_errors() -> None:
    workers = Workers("test", 1)
    assert await workers.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.call(divmod, 1, 0)
    workers.close()


def test_readiness_is_told_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


async def test_an_argument_with_a_zero_byte_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidError, match="zero byte"):
        await process.run(["true", "a\0b"], timeout_s=10)
