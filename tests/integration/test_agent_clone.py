# SPDX-License-Identifier: Apache-2.0
"""What the agent does so that a clone is a guest of its own, in a bare QEMU."""

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperd.errors import HyperError, NotFoundError, WrongStateError
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerIdentity,
    ForkIdentity,
    GuestMount,
    Link,
    ProcessExit,
    ProcessId,
    ProcessPlan,
)
from tests.bareguest import BOX, ENV, Bench, container, execute, read_all, read_until, run

MACHINE_ID, BOOT_ID = "0123456789abcdef" * 2, "01234567-89ab-cdef-0123-456789abcdef"
OTHER_MACHINE_ID, OTHER_BOOT_ID = "f" * 32, "ffffffff-ffff-ffff-ffff-ffffffffffff"
IDS = {"machine_id": MACHINE_ID, "boot_id": BOOT_ID}
OTHER_IDS = {"machine_id": OTHER_MACHINE_ID, "boot_id": OTHER_BOOT_ID}
FORKPOINT_WAITS = "until grep -qs inotify /proc/[0-9]*/fdinfo/*; do :; done"
SHOW_IDS = "cat /etc/machine-id /proc/sys/kernel/random/boot_id"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


async def test_clones_of_a_template_have_their_own_everything(bench):
    source = bench.boot()
    guest = await source.dial()
    await guest.release_devices()
    await guest.close()
    bench.save(source)

    randoms = set()
    for index in range(2):
        clone = bench.clone()
        guest = await clone.dial()
        ids = {"machine_id": f"{index}" * 32, "boot_id": BOOT_ID}
        await guest.configure(clone.identity(hostname=f"clone{index}", **ids))
        script = (
            f"cat /proc/sys/kernel/random/uuid; {SHOW_IDS}; cat /sys/class/net/eth0/address;"
            "hostname; ip -4 -o addr show dev eth0; ip route; date +%s"
        )
        await run(guest, container(script))
        lines = (await read_all(guest)).splitlines()
        randoms.add(lines[0])
        assert lines[1:5] == [f"{index}" * 32, BOOT_ID, clone.mac, f"clone{index}"]
        assert "10.9.0.2/24" in lines[5]
        assert lines[6].startswith("default via 10.9.0.1 dev eth0")
        assert abs(int(lines[-1]) - time.time()) < 10
        assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(0)
        with pytest.raises(WrongStateError):
            await guest.release_devices()
        await guest.close()
        clone.end()
    assert len(randoms) == 2


async def test_a_template_s_disk_is_left_as_it_was_and_found_where_it_is_the_same(bench):
    """What the template's memory knows of its disk counts for that disk alone, in that state."""
    before = hashlib.sha256(bench.writable.read_bytes()).digest()
    source = bench.boot()
    guest = await source.dial()
    await guest.release_devices()
    await guest.close()
    bench.save(source)
    assert hashlib.sha256(bench.writable.read_bytes()).digest() == before, "the template wrote to its disk"

    for state in ("the same", "used", "other"):
        clone = bench.clone()
        guest = await clone.dial()
        await guest.configure(clone.identity())
        await run(guest, container(f"echo {state} >> /kept; cat /kept"))
        lines = (await read_all(guest)).splitlines()
        assert lines[0] == "the same" if state != "other" else "other"
        assert lines.count("used") == (state == "used")
        await guest.wait_process(BOX, FIRST_PROCESS)
        await guest.shutdown(20)
        clone.process.wait(60)
        subprocess.run(["e2fsck", "-fn", str(clone.writable)], check=True, capture_output=True)
        if state == "used":  # of another size, too
            bench.writable.unlink()
            with bench.writable.open("wb") as disk:
                disk.truncate(96 << 20)
            subprocess.run(["mkfs.ext4", "-q", str(bench.writable)], check=True)
        else:
            clone.writable.replace(bench.writable)


async def test_a_frozen_guest_stands_still_and_a_clone_of_it_goes_on_as_another(bench):
    source = bench.boot()
    guest = await source.dial()
    await guest.configure(source.identity(**IDS))
    ticking = "n=0; while :; do n=$((n+1)); echo $n > /ticks; done"
    await run(guest, container(f"{SHOW_IDS}; ({ticking}) & sleep 1000"))
    assert MACHINE_ID in await read_until(guest, BOOT_ID)
    await guest.freeze()
    await guest.freeze()
    with pytest.raises(WrongStateError):
        await guest.exec_process(BOX, ProcessId("x"), ProcessPlan(("true",), ENV))
    with pytest.raises(WrongStateError):
        await guest.create_container(container("true", container_id=ContainerId("c" * 64)))
    await guest.close()
    bench.save(source)

    clone = bench.clone()
    guest = await clone.dial()
    before = (await guest.stats(BOX)).cpu_usage_ns
    stranger = ContainerIdentity(ContainerId("d" * 64), "x")
    with pytest.raises(NotFoundError):
        await guest.configure(clone.identity(containers=(stranger,)))
    known = ContainerIdentity(BOX, "renamed")
    link = Link(clone.mac, "eth0", ("10.9.7.7/24", "fd00::7/64"), ())
    identity = clone.identity(hostname="renamed", links=(link,), containers=(known,), **OTHER_IDS)
    await guest.configure(identity)
    await guest.configure(identity)
    assert (await guest.stats(BOX)).cpu_usage_ns == before, "it must not run before it is thawed"
    await guest.thaw()
    await guest.thaw()
    shown = await execute(
        guest,
        f"{SHOW_IDS} /etc/hostname /sys/class/net/eth0/address; hostname; cat /etc/hosts; ip -o addr; ip route",
    )
    assert shown.startswith(f"{OTHER_MACHINE_ID}\n{OTHER_BOOT_ID}\nrenamed\n{clone.mac}\nrenamed\n")
    assert "10.9.7.7\trenamed" in shown
    assert "10.9.7.7/24" in shown
    assert "fd00::7/64" in shown
    assert "10.9.0." not in shown, "the source's address and route are gone"
    ticks = 'a=$(cat /ticks); while [ "$(cat /ticks)" = "$a" ]; do :; done; echo moved'
    assert await execute(guest, ticks) == "moved\n"
    await guest.close()


async def test_forkpoints_return_in_each_clone_and_only_there(bench):
    source = bench.boot()
    guest = await source.dial()
    await guest.configure(source.identity(**IDS))
    script = (
        'echo begun; eval "$(/run/hyper/forkpoint)"; echo "first $HYPER_FORK_INDEX/$HYPER_FORK_COUNT $WORD";'
        "exec /run/hyper/forkpoint sh -c 'echo \"second $HYPER_FORK_INDEX $WORD\"'"
    )
    plan = container(
        script, user="user", readonly_root=True, mounts=(GuestMount("/run", "tmpfs", options=("mode=755",)),)
    )
    await run(guest, plan)
    await read_until(guest, "begun")
    await execute(guest, FORKPOINT_WAITS, user="user")
    assert "refused" in await execute(guest, "touch /run/hyper/mine || echo refused")
    await guest.freeze()
    await guest.close()
    bench.save(source)

    for index in range(2):
        clone = bench.clone()
        guest = await clone.dial()
        await guest.configure(clone.identity(fork=ForkIdentity(index, 2, ("WORD=it's $HOME",))))
        await guest.thaw()
        assert f"first {index}/2 it's $HOME\n" in await read_until(guest, "first")
        await execute(guest, FORKPOINT_WAITS, user="user")
        await guest.configure(clone.identity(fork=ForkIdentity(index + 5, 9)))
        async with asyncio.timeout(60):
            assert f"second {index + 5} it's $HOME" in await read_all(guest)
        await guest.close()
        clone.end()


async def test_a_fork_keeps_its_limit_of_memory_and_tells_who_was_killed_for_it(bench):
    too_much, little = ("dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"), ("true",)

    async def end_of(name: str, args: tuple[str, ...]) -> ProcessExit:
        await guest.exec_process(BOX, ProcessId(name), ProcessPlan(args, ENV))
        async with asyncio.timeout(60):
            exit_: ProcessExit = await guest.wait_process(BOX, ProcessId(name))
        return exit_

    source = bench.boot()
    guest = await source.dial()
    await guest.configure(source.identity())
    await run(guest, container("sleep 1000", memory_bytes=48 << 20))
    # What was before the fork is counted to nobody after it.
    assert await end_of("before", too_much) == ProcessExit(137, signal=9, oom_killed=True)
    await guest.exec_process(BOX, ProcessId("across"), ProcessPlan(("sleep", "1000"), ENV))
    await guest.freeze()
    await guest.close()
    bench.save(source)

    clone = bench.clone()
    guest = await clone.dial()
    await guest.configure(clone.identity(fork=ForkIdentity(0, 1)))
    await guest.thaw()
    assert (await guest.stats(BOX)).memory_limit_bytes == 48 << 20
    assert await end_of("little", little) == ProcessExit(0)
    assert await guest.signal(BOX, ProcessId("across"), 9)
    assert await guest.wait_process(BOX, ProcessId("across")) == ProcessExit(137, signal=9)
    assert await end_of("after", too_much) == ProcessExit(137, signal=9, oom_killed=True)
    assert await end_of("then", little) == ProcessExit(0)
    (status,) = await guest.list_containers()
    assert status.processes[0].running, "only who asked for too much is killed"
    await guest.close()


async def test_ids_and_forkpoint_are_no_obstacle_to_any_kind_of_container(bench):
    source = bench.boot()
    guest = await source.dial()
    await guest.configure(source.identity(**IDS))
    tmpfs = (GuestMount("/etc", "tmpfs"),)
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "a": ({"privileged": True}, f"{SHOW_IDS}"),
        "b": ({"readonly_root": True}, f"{SHOW_IDS}"),
        "c": ({"mounts": tmpfs}, f"echo {MACHINE_ID}; cat /proc/sys/kernel/random/boot_id"),
        "d": ({"user": "user"}, f"{SHOW_IDS}"),
    }
    for letter, (given, script) in kinds.items():
        own = ContainerId(letter * 64)
        await run(
            guest,
            container(
                f"{script}; (echo x > /etc/machine-id) 2>/dev/null; test -x /run/hyper/forkpoint && echo there",
                container_id=own,
                **given,
            ),
        )
        shown = await read_all(guest, own)
        assert shown.startswith(f"{MACHINE_ID}\n{BOOT_ID}\n"), letter
        assert shown.endswith("there\n"), letter
        await guest.delete_container(own)
    await guest.close()


async def test_a_forgotten_execs_child_never_blocks(bench):
    source = bench.boot()
    guest = await source.dial()
    await guest.configure(source.identity())
    await run(guest, container("sleep 1000"))
    name = ProcessId("parent")
    child = "(yes | head -c 2000000; echo done > /done) & exit 0"
    await guest.exec_process(BOX, name, ProcessPlan(("sh", "-c", child), ENV))
    await guest.wait_process(BOX, name)
    await guest.forget_process(BOX, name)
    async with asyncio.timeout(60):
        assert await execute(guest, "while ! [ -e /done ]; do :; done; cat /done") == "done\n"
    await guest.close()


async def test_bad_entropy_and_ids_change_nothing(bench):
    source = bench.boot()
    guest = await source.dial()
    for wrong in ({"machine_id": "x"}, {"boot_id": "x"}, {"entropy": b"x" * 513}):
        with pytest.raises(HyperError):
            await guest.configure(source.identity(hostname="never", **wrong))
    await guest.configure(source.identity(hostname=""))
    await run(guest, container("hostname"))
    assert "never" not in await read_all(guest)
    await guest.close()
