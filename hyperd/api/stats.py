# SPDX-License-Identifier: Apache-2.0
"""What containers use, onto the wire."""

from hyper.v1 import container_pb2 as wire
from hyperd.model.stats import ContainerStats


def encode(stats: ContainerStats) -> wire.ContainerStats:
    """What is not known is not set."""
    vm, wires = stats.vm, stats.wire
    return wire.ContainerStats(
        container_id=stats.sandbox_id,
        name=stats.name,
        running=stats.is_running,
        read_at_ns=vm.read_at_ns if vm else 0,
        cpu_ns=vm.cpu_ns if vm else None,
        memory_bytes=stats.memory_bytes,
        memory_limit_bytes=stats.memory_limit_bytes,
        host_memory_bytes=vm.memory_bytes if vm else None,
        pids=stats.pids,
        received_bytes=wires.received_bytes if wires else None,
        received_packets=wires.received_packets if wires else None,
        sent_bytes=wires.sent_bytes if wires else None,
        sent_packets=wires.sent_packets if wires else None,
        rate_dropped_in=wires.dropped_in if wires else None,
        rate_dropped_out=wires.dropped_out if wires else None,
        block_read_bytes=vm.block_read_bytes if vm else None,
        block_written_bytes=vm.block_written_bytes if vm else None,
    )
