# SPDX-License-Identifier: Apache-2.0
"""`make bench`: our numbers, each beside a floor measured in the same run. Prints a table and writes build/bench.json.

cold start   API call to first output byte of `echo ok`; floor: bare QEMU, same kernel and agent, to the agent's hello
exec         API call to exit status of `true` in a running container; floor: an empty call of hyperd
hyper version  the whole process; floor: python importing grpc
stdout       of `dd` in a running container; floor: the same through a pipe inside the guest
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from bench import floor
from bench.measure import Result, interleaved, render, summarize, write
from hyper.v1 import container_pb2, container_pb2_grpc, system_pb2, system_pb2_grpc
from tests import images
from tests.harness import Hyper, hyper

OUTPUT = Path(__file__).resolve().parent.parent / "build/bench.json"
IMAGE = "test.local/busybox"
STDOUT_BYTES = 64 << 20
MEMORY_MIB = 256


def main() -> None:
    options = _options()
    with hyper(accel="auto") as host, tempfile.TemporaryDirectory() as scratch:
        images.write_layout(images.busybox_image(), Path(scratch) / "busybox", f"{IMAGE}:latest")
        host.ok("pull", "-q", f"oci:{scratch}/busybox:{IMAGE}:latest")
        info, version = asyncio.run(_info(host))
        guest_kernel = host.ok("run", "--rm", IMAGE, "uname", "-r")
        results = [_cold_start(host, info.accelerator, options.n)]
        host.ok("run", "-d", "--name", "bench", IMAGE, "sleep", "100000")
        results += [_exec(host, options.n * 5), _version(host, options.n), _stdout(host)]
        results += _memory(host, info.accelerator)
        host.ok("rm", "-f", "bench")
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
            "guest_kernel": guest_kernel,
        },
    }
    print(f"accelerator {info.accelerator}: {info.accelerator_reason}")
    print(f"{os.cpu_count()} CPUs, Linux {platform.release()}\n")
    print(render(results))
    write(OUTPUT, about, results)
    print(f"\nwritten to {OUTPUT}")


def _cold_start(host: Hyper, accelerator: str, n: int) -> Result:
    ours, bare = interleaved(
        n, lambda: asyncio.run(_first_byte(host, ["echo", "ok"])), lambda: floor.boot_ms(accelerator)
    )
    return summarize("cold start, API call to first byte", "ms", ours, floor=bare, aim="ratio <= 1.5")


def _exec(host: Hyper, n: int) -> Result:
    ours = asyncio.run(_execs(host, n))
    calls = asyncio.run(_unary_calls(host, n))
    return summarize(
        "exec of true, API call to status", "ms", ours, floor=calls, aim="floor: an empty call of hyperd"
    )


def _version(host: Hyper, n: int) -> Result:
    version = host.argv("version")
    empty = [sys.executable, "-c", "import grpc"]
    ours, bare = interleaved(n, lambda: floor.process_ms(version), lambda: floor.process_ms(empty))
    return summarize("hyper version, whole process", "ms", ours, floor=bare, aim="<= 150 ms")


def _stdout(host: Hyper) -> Result:
    source = f"dd if=/dev/zero bs=64k count={STDOUT_BYTES >> 16} 2>/dev/null"

    def rate(command: str) -> float:
        began = time.monotonic()
        subprocess.run(host.argv("exec", "bench", "sh", "-c", command), stdout=subprocess.DEVNULL, check=True)
        return STDOUT_BYTES / (1 << 20) / (time.monotonic() - began)

    rates, floors = interleaved(3, lambda: rate(source), lambda: rate(f"{source} | cat > /dev/null"))
    return summarize(
        "stdout of an exec, through hyper", "MiB/s", rates, floor=floors, aim="floor: a pipe in the guest"
    )


def _memory(host: Hyper, accelerator: str) -> list[Result]:
    pid = next(iter(host.qemu_processes()))
    beyond = floor.qemu_rss_beyond_memory_mib(pid, MEMORY_MIB)
    agent = floor.agent_rss_mib(accelerator)
    return [
        summarize("agent, resident", "MiB", [agent], aim="<= 8"),
        summarize("QEMU, resident beyond the guest's memory", "MiB", [beyond]),
    ]


async def _first_byte(host: Hyper, command: list[str]) -> float:
    async with grpc.aio.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        await channel.channel_ready()
        stub = container_pb2_grpc.ContainerServiceStub(channel)
        spec = container_pb2.ContainerSpec(image=IMAGE, args=command, auto_remove=True)
        began = time.monotonic()
        first = 0.0
        async for response in stub.RunContainer(
            _requests(container_pb2.SessionRequest(run=container_pb2.RunOptions(spec=spec)))
        ):
            if response.WhichOneof("kind") == "stdout" and not first:
                first = (time.monotonic() - began) * 1000
        return first


async def _execs(host: Hyper, n: int) -> list[float]:
    samples = []
    async with grpc.aio.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        stub = container_pb2_grpc.ContainerServiceStub(channel)
        request = container_pb2.SessionRequest(
            exec=container_pb2.ExecOptions(container="bench", args=["true"])
        )
        for _ in range(n):
            began = time.monotonic()
            async for response in stub.ExecContainer(_requests(request)):
                if response.WhichOneof("kind") == "exit":
                    samples.append((time.monotonic() - began) * 1000)
    return samples


async def _unary_calls(host: Hyper, n: int) -> list[float]:
    samples = []
    async with grpc.aio.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        stub = system_pb2_grpc.SystemServiceStub(channel)
        for _ in range(n):
            began = time.monotonic()
            await stub.GetVersion(system_pb2.GetVersionRequest())
            samples.append((time.monotonic() - began) * 1000)
    return samples


async def _info(host: Hyper) -> tuple[system_pb2.GetInfoResponse, system_pb2.GetVersionResponse]:
    async with grpc.aio.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        stub = system_pb2_grpc.SystemServiceStub(channel)
        while True:  # the probe of the accelerator is bounded by hyperd
            info = await stub.GetInfo(system_pb2.GetInfoRequest())
            if info.accelerator:
                return info, await stub.GetVersion(system_pb2.GetVersionRequest())
            await asyncio.sleep(0.2)


def _cpu() -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return models[0].partition(": ")[2] if models else platform.machine()


async def _requests(first: container_pb2.SessionRequest) -> AsyncIterator[container_pb2.SessionRequest]:
    yield first


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="hyper's numbers, each beside its floor")
    parser.add_argument("-n", type=int, default=20, help="runs of each measurement (20)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
