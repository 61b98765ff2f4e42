# SPDX-License-Identifier: Apache-2.0
"""A process of its own with a hypervisor, for tests that kill it: holder.py LAB ROOT VERB [ARGUMENT...]

hold ID...         start, say "running", wait to be killed
pause ID...        start, pause, say "running", wait to be killed
save STATE ID      start, say "running", save
restore STATE ID   say "running", start from STATE
resume             resume whatever is there already, in the first moment; say how many were paused before and after
end                end whatever is there already, in the first moment; say how many there were before and after
"""

import asyncio
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from hyperd.host.reaper import Reaper
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt import LibvirtHypervisor
from tests.contract.vm.lab import Lab, counted, eventually


async def resume_all(hypervisor: LibvirtHypervisor) -> None:
    before = await hypervisor.list_running()
    for vm in before:
        await hypervisor.resume(vm.sandbox_id)
    after = await hypervisor.list_running()
    print(sum(vm.paused for vm in before), sum(vm.paused for vm in after), flush=True)


async def end_all(hypervisor: LibvirtHypervisor) -> None:
    before = await hypervisor.list_running()
    for vm in before:
        await hypervisor.destroy(vm.sandbox_id)
    print(len(before), len(await hypervisor.list_running()), flush=True)


async def hold(hypervisor: LibvirtHypervisor, lab: Lab, verb: str, arguments: list[str]) -> None:
    if verb == "restore":
        state, sandbox_id = arguments
        print("running", flush=True)
        await hypervisor.start(
            lab.define("count", SandboxId(sandbox_id), channels=(), restore_from=Path(state))
        )
    elif verb == "save":
        state, sandbox_id = arguments
        definition = lab.define_source(SandboxId(sandbox_id), shared=False, guest="fill")
        await hypervisor.start(definition)
        await eventually(lambda: bool(counted(definition)))
        print("running", flush=True)
        await hypervisor.save(SandboxId(sandbox_id), Path(state))
    else:
        for sandbox_id in arguments:
            await hypervisor.start(lab.define("count", SandboxId(sandbox_id), channels=()))
            if verb == "pause":
                await hypervisor.pause(SandboxId(sandbox_id))
        print("running", flush=True)
    await asyncio.get_running_loop().create_future()


async def main(path: Path, root: Path, verb: str, arguments: list[str]) -> None:
    lab = Lab(path, root)
    settings = dataclasses.replace(lab.settings, save_bytes_per_s=10)
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        if verb == "resume":
            await resume_all(hypervisor)
        elif verb == "end":
            await end_all(hypervisor)
        else:
            await hold(hypervisor, lab, verb, arguments)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
