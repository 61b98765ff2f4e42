# SPDX-License-Identifier: Apache-2.0
"""What the hyperd without machines says of itself."""
# ruff: noqa: N802 - the methods have the names of the contract

from hyper.v1 import container_pb2 as pb
from hyper.v1 import system_pb2, system_pb2_grpc
from tests.fakes.daemon_state import FakeDaemon


class FakeSystem(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def ResetSystem(self, request, context):
        await self._daemon.check(request, context)
        return system_pb2.ResetSystemResponse(containers=["web"], networks=["back"], floating=["203.0.113.1"])

    async def GetVersion(self, request, context):
        await self._daemon.check(request, context)
        return system_pb2.GetVersionResponse(
            version="0.1.0",
            api_version="1",
            agent_protocol_version=1,
            python_version="3.11.2",
            qemu_version="10.0.2",
            libvirt_version="11.3.0",
            guest_kernel="6.12.1-hyper",
            host_kernel="6.1.0",
            architecture="x86_64",
        )

    async def GetInfo(self, request, context):
        await self._daemon.check(request, context)
        states = [container.state for container in self._daemon.containers.values()]
        running, paused = (
            states.count(state) for state in (pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_PAUSED)
        )
        return system_pb2.GetInfoResponse(
            version="0.1.0",
            accelerator="tcg",
            accelerator_reason="KVM: no hello from the agent in 5 s",
            containers=len(self._daemon.containers),
            containers_running=running,
            containers_paused=paused,
            containers_stopped=len(self._daemon.containers) - running - paused,
            images=len(self._daemon.images),
            state_dir="/var/lib/hyper",
            run_dir="/run/hyper",
            hypervisor_uri="qemu:///embed?root=/var/lib/hyper/libvirt",
            kernel_path="/usr/lib/hyper/vmlinux",
            initramfs_path="/usr/lib/hyper/initramfs",
            qemu_user="libvirt-qemu",
            cpus=2,
            memory_bytes=8 << 30,
            host_kernel="6.1.0",
            operating_system="Debian GNU/Linux 12 (bookworm)",
            state_free_bytes=100 << 30,
            pid=self._daemon.pid,
            default_memory_mib=256,
            default_vcpus=1,
            bridge="hyper0",
            subnet="10.88.0.0/16",
        )

    async def GetDiskUsage(self, request, context):
        await self._daemon.check(request, context)
        return self._daemon.usage

    async def CheckHost(self, request, context):
        await self._daemon.check(request, context)
        return system_pb2.CheckHostResponse(checks=self._daemon.checks)
