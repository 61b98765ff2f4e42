# SPDX-License-Identifier: Apache-2.0
"""What a container of a hyperd without machines uses: a quarter of a CPU, whenever it is asked."""

from hyper.v1 import container_pb2 as pb


def used(container: pb.Container, turn: int) -> pb.ContainerStats:
    """At its ``turn``-th second."""
    stats = pb.ContainerStats(
        container_id=container.id,
        name=container.name,
        running=container.state in {pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_PAUSED},
        memory_limit_bytes=512 << 20,
    )
    if stats.running:
        stats.MergeFrom(
            pb.ContainerStats(
                read_at_ns=turn * 1_000_000_000,
                cpu_ns=turn * 250_000_000,
                host_memory_bytes=96 << 20,
                received_bytes=1_500_000,
                sent_bytes=2_000,
                rate_dropped_in=3,
                rate_dropped_out=7,
                block_read_bytes=7_000_000,
                block_written_bytes=0,
            )
        )
    if container.state == pb.CONTAINER_STATE_RUNNING:
        stats.memory_bytes, stats.pids = 64 << 20, 5
    return stats
