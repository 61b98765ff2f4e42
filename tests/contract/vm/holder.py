# SPDX-License-Identifier: Apache-2.0
"""A process that starts VMs and then waits to be killed: holder.py LAB ROOT ID...

Without an id: end whatever runs already, in the first moment, and say how many VMs were listed before and after.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from hyperd.host.reaper import Reaper
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt import LibvirtHypervisor
from tests.contract.vm.lab import Lab


async def main(path: Path, root: Path, ids: list[str]) -> None:
    lab = Lab(path, root)
    async with Reaper(), LibvirtHypervisor(lab.settings) as hypervisor:
        if not ids:
            before = await hypervisor.list_running()
            for vm in before:
                await hypervisor.destroy(vm.sandbox_id)
            print(len(before), len(await hypervisor.list_running()), flush=True)
            return
        for sandbox_id in ids:
            await hypervisor.start(lab.define(sandbox_id=SandboxId(sandbox_id), channels=()))
        print("running", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
