# SPDX-License-Identifier: Apache-2.0
"""A QEMU that libvirt was asking when its process was killed goes with the next one."""

import os
import subprocess
from pathlib import Path

from hyperd.host.reaper import Reaper
from hyperd.vm.libvirt.probes import end_probes
from tests.contract.vm.lab import Lab


def directory_of(lab: Lab) -> Path:
    directory = lab.settings.root / "lib/qemu/qmp-A1B2C3"
    directory.mkdir(parents=True)
    return directory


async def test_a_probe_that_was_cut_off_is_ended_and_its_directory_goes(own_lab: Lab) -> None:
    directory = directory_of(own_lab)
    async with Reaper():
        subprocess.run(
            [
                *("/usr/bin/qemu-system-x86_64", "-S", "-no-user-config", "-nodefaults", "-nographic"),
                *("-machine", "none", "-qmp", f"unix:{directory}/qmp.monitor,server=on,wait=off"),
                *("-pidfile", directory / "qmp.pid", "-daemonize"),
            ],
            check=True,
        )
        assert len(own_lab.probe_pids()) == 1
        await end_probes(own_lab.settings)
    assert not own_lab.probe_pids()
    assert not directory.exists()


async def test_whoever_has_the_pid_of_a_probe_now_is_left_alone(own_lab: Lab) -> None:
    directory = directory_of(own_lab)
    (directory / "qmp.pid").write_text(f"{os.getpid()}\n")
    await end_probes(own_lab.settings)
    assert not directory.exists()
