# SPDX-License-Identifier: Apache-2.0
"""`hyper version` and `hyper info`."""

import sys
from typing import Any

from hyper.v1 import system_pb2 as pb
from hyperctl import VERSION, flags, tree
from hyperctl import client as hyperd
from hyperctl.errors import CliError
from hyperctl.output import render_document
from hyperctl.render import printable, render_binary_size
from hyperctl.template import Template

app = tree.group()


@tree.command(app, "version")
def version(*, form: flags.DocumentsFormat = "") -> int:
    """Show the versions of hyper and of what it stands on."""
    _check(form)
    python = ".".join(map(str, sys.version_info[:3]))
    document: dict[str, Any] = {"Client": {"Version": VERSION, "PythonVersion": python}, "Server": None}
    failure: CliError | None = None
    try:
        answer = hyperd.ask(
            lambda client: client.system.GetVersion(pb.GetVersionRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
        )
        document["Server"] = {
            "Version": answer.version,
            "ApiVersion": answer.api_version,
            "AgentProtocolVersion": answer.agent_protocol_version,
            "PythonVersion": answer.python_version,
            "QemuVersion": answer.qemu_version,
            "LibvirtVersion": answer.libvirt_version,
            "GuestKernel": answer.guest_kernel,
            "HostKernel": answer.host_kernel,
            "Arch": answer.architecture,
        }
    except CliError as error:
        failure = error
    if form and (failure is None or form == "json" or ".Server" not in form):
        print(render_document(document, form))
    elif not form:
        print(_describe_version(document))
    if failure is not None:
        sys.stdout.flush()
        raise failure
    return 0


def _describe_version(document: dict[str, Any]) -> str:
    lines = []
    for side in ("Client", "Server"):
        if document[side] is None:
            continue
        lines.append(f"{side}:")
        lines += [f" {LABELS[key] + ':':<19}{value or 'unknown'}" for key, value in document[side].items()]
        lines.append("")
    return printable("\n".join(lines).rstrip())


LABELS = {
    "Version": "Version",
    "ApiVersion": "API version",
    "AgentProtocolVersion": "Agent protocol",
    "PythonVersion": "Python",
    "QemuVersion": "QEMU",
    "LibvirtVersion": "libvirt",
    "GuestKernel": "Guest kernel",
    "HostKernel": "Host kernel",
    "Arch": "Architecture",
}


@tree.command(app, "info")
def info(*, form: flags.DocumentsFormat = "") -> int:
    """Show what the daemon runs with."""
    _check(form)
    answer = hyperd.ask(
        lambda client: client.system.GetInfo(pb.GetInfoRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
    )
    if form:
        print(render_document(info_document(answer), form))
    else:
        print(describe_info(answer))
    return 0


def info_document(answer: pb.GetInfoResponse) -> dict[str, Any]:
    """Docker's names where Docker has the thing."""
    return {
        "ServerVersion": answer.version,
        "Containers": answer.containers,
        "ContainersRunning": answer.containers_running,
        "ContainersPaused": answer.containers_paused,
        "ContainersStopped": answer.containers_stopped,
        "Images": answer.images,
        "Accelerator": answer.accelerator,
        "AcceleratorReason": answer.accelerator_reason,
        "HypervisorURI": answer.hypervisor_uri,
        "QemuUser": answer.qemu_user,
        "GuestKernelPath": answer.kernel_path,
        "InitramfsPath": answer.initramfs_path,
        "DefaultVcpus": answer.default_vcpus,
        "DefaultMemoryMiB": answer.default_memory_mib,
        "Spares": answer.spares,
        "SparesReady": answer.spares_ready,
        "Bridge": answer.bridge,
        "Subnet": answer.subnet,
        "NetworkTrouble": answer.network_trouble,
        "KernelVersion": answer.host_kernel,
        "OperatingSystem": answer.operating_system,
        "NCPU": answer.cpus,
        "MemTotal": answer.memory_bytes,
        "HyperRootDir": answer.state_dir,
        "RunDir": answer.run_dir,
        "FreeBytes": answer.state_free_bytes,
        "Pid": answer.pid,
    }


def describe_info(answer: pb.GetInfoResponse) -> str:
    accelerator = answer.accelerator or "not known yet"
    if answer.accelerator_reason:
        accelerator += f" ({answer.accelerator_reason})"
    lines = [
        "Server:",
        f" Containers: {answer.containers}",
        f"  Running: {answer.containers_running}",
        f"  Paused: {answer.containers_paused}",
        f"  Stopped: {answer.containers_stopped}",
        f" Images: {answer.images}",
        f" Server Version: {answer.version}",
        f" Accelerator: {accelerator}",
        f" Hypervisor: {answer.hypervisor_uri}",
        f" QEMU User: {answer.qemu_user}",
        f" Guest Kernel: {answer.kernel_path}",
        f" Guest Initramfs: {answer.initramfs_path}",
        f" Default Machine: {answer.default_vcpus} vCPUs, {answer.default_memory_mib} MiB",
        f" Spares: {answer.spares_ready} ready of {answer.spares}",
        f" Network: {answer.bridge} {answer.subnet}".rstrip(),
        *([f"  Not ready: {answer.network_trouble}"] if answer.network_trouble else []),
        f" Kernel Version: {answer.host_kernel}",
        f" Operating System: {answer.operating_system}",
        f" CPUs: {answer.cpus}",
        f" Total Memory: {render_binary_size(answer.memory_bytes)}",
        f" Hyper Root Dir: {answer.state_dir} ({render_binary_size(answer.state_free_bytes)} free)",
        f" Run Dir: {answer.run_dir}",
        f" Daemon PID: {answer.pid}",
    ]
    return printable("\n".join(lines))


def _check(form: str) -> None:
    """A template that cannot be is refused before anything is asked."""
    if form and form != "json":
        Template(form)
