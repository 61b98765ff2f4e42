# SPDX-License-Identifier: Apache-2.0
"""`make bench`: our numbers, each beside a floor measured in the same run. Prints a table and writes build/bench.json.

`make bench ARGS='--only template,fork -n 3'` selects, and shortens. A bench that cannot run says why; the others go on,
and the status at the end is 1.
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench import execs, fio, forks, images, memory, network, policies, shares, starts, storage
from bench.api import IMAGE, Api, call
from bench.measure import NotMeasured, Result, render, write
from bench.stage import Bench, Stage, running_hyper
from hyper.v1 import system_pb2
from tests.harness import Hyper

OUTPUT = Path(__file__).resolve().parent.parent / "build/bench.json"
ACCELERATOR_S = 60.0

BENCHES: dict[str, tuple[Bench, str]] = {
    "template": (starts.template, "start from a template; floor: a bare restore, to the agent's hello"),
    "spare": (starts.spare, "both of these from a spare, when one is ready; the same floors"),
    "command": (starts.command, "`hyper run --rm IMAGE true`; floor: a bare restore + `python -c 'import grpc'`"),
    "cold": (starts.cold, "start without templates; floor: a bare boot, to the agent's hello"),
    "hundred": (starts.hundred, "100 starts, 20 at a time, and 100 removals; floors: as many bare restores, and kills"),
    "fork": (forks.fork, "a fork of 20; floor: 20 bare restores of a snapshot"),
    "pause": (forks.pause, "how long a fork's source stands still; floor: a bare save of such a guest"),
    "exec": (execs.round_trip, "exec of `true`; floor: fork and exec of it in the guest"),
    "stdout": (execs.stdout, "output of an exec; floor: a pipe in the guest"),
    "version": (starts.version, "`hyper version`; floor: `python -c 'import grpc'`"),
    "storage": (storage.speed, "what a guest writes and reads; floor: the same program on a bare QEMU's disk"),
    "fio": (fio.speed, "fio on the writable layer and a volume; floor: the same on a bare QEMU's disk"),
    "volume": (storage.volumes, "attach of a volume in a start; what fstrim gives back"),
    "virtiofs": (shares.virtiofs, "a directory of the host; floor: a bare QEMU with a bare virtiofsd"),
    "pull": (images.pull, "pull of 1 GiB in 10 layers; floors: podman pull, skopeo copy + mkfs.erofs"),
    "layer": (images.memory, "how hyperd grows in the pull of a layer of 2 GiB"),
    "push": (images.push, "push of the image; floor: skopeo copy"),
    "commit": (images.commit, "commit of 512 MiB; floor: tar | gzip at the same level"),
    "disk": (images.disk, "four images that share layers; floor: each layer once"),
    "agent": (memory.agent, "resident memory of the agent"),
    "network": (network.traffic, "TCP of guests and requests to them; floor: bare QEMUs on a plain bridge"),
    "attach": (network.attaches, "attach to a network with three published ports; floor: with none"),
    "policies": (policies.among_many, "rules of one sandbox more among 500; floor: nft with the same rules"),
    "memory": (memory.clones, "PSS per idle clone, of 50, every MiB under a name"),
}  # fmt: skip


def main() -> int:
    options = _options()
    results: list[Result] = []
    not_measured: list[NotMeasured] = []
    with tempfile.TemporaryDirectory() as scratch, running_hyper(IMAGE, scratch) as host:
        about, accelerator = _about(host)
        print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, {accelerator}", flush=True)
        stage = Stage(host, accelerator, options.n, options.image_mib)
        for name in options.only:
            began = time.monotonic()
            try:
                results += BENCHES[name][0](stage)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on, and it is told
                not_measured.append(NotMeasured(name, f"{type(error).__name__}: {error}"))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            write(OUTPUT, about, results, not_measured)
    print()
    print(render(results))
    for missing in not_measured:
        print(f"\nnot measured: {missing.bench}: {missing.why}")
    print(f"\nwritten to {OUTPUT}")
    return 1 if not_measured else 0


def _about(host: Hyper) -> tuple[dict[str, object], str]:
    async def ask(api: Api) -> tuple[system_pb2.GetInfoResponse, system_pb2.GetVersionResponse]:
        deadline = time.monotonic() + ACCELERATOR_S
        while True:  # the probe of the accelerator is bounded by hyperd
            info = await api.system.GetInfo(system_pb2.GetInfoRequest())
            if info.accelerator:
                return info, await api.system.GetVersion(system_pb2.GetVersionRequest())
            if time.monotonic() > deadline:
                raise RuntimeError(f"hyperd has chosen no accelerator within {ACCELERATOR_S:g} s")

    info, version = call(host, ask)
    about: dict[str, object] = {
        "host": {
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "memory_mib": info.memory_bytes >> 20,
        },
        "accelerator": info.accelerator,
        "accelerator_reason": info.accelerator_reason,
        "versions": {
            "hyper": version.version,
            "python": version.python_version,
            "qemu": version.qemu_version,
            "libvirt": version.libvirt_version,
            "guest_kernel": host.ok("run", "--rm", IMAGE, "uname", "-r"),
        },
    }
    return about, info.accelerator


def _cpu() -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return models[0].partition(": ")[2] if models else platform.machine()


def _options() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<10}{about}" for name, (_, about) in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="bench",
        description=f"hyper's numbers, each beside its floor:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", type=_count, help="runs of each measurement, instead of its own number")
    parser.add_argument(
        "--image-mib",
        type=_count,
        default=1024,
        help="size of the image that pull and push move [1024]; layer takes twice, commit half of it",
    )
    parser.add_argument(
        "--only", type=_names, default=list(BENCHES), metavar="NAME[,NAME...]", help="these alone"
    )
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(BENCHES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there is {', '.join(BENCHES)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: not a number above 0")
    return int(text)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # which unwinds: guests, daemon and directories go


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
