# SPDX-License-Identifier: Apache-2.0
"""SnapshotService, and the calls of ContainerService about pausing, sleeping and forking, over their socket."""

from collections.abc import AsyncIterator

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2
from tests.unit.api.conftest import Api


async def running(api: Api, name: str) -> str:
    spec = pb.ContainerSpec(image="alpine", args=["sleep"], name=name)
    made = await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
    await api.containers.StartContainer(pb.StartContainerRequest(container=name))
    return str(made.container_id)


async def shown(api: Api, name: str) -> pb.Container:
    answer = await api.containers.InspectContainer(pb.InspectContainerRequest(container=name))
    container: pb.Container = answer.container
    return container


async def test_a_container_is_paused_and_goes_on(api: Api) -> None:
    await running(api, "web")
    await api.containers.PauseContainer(pb.PauseContainerRequest(container="web"))
    assert (await shown(api, "web")).state == pb.CONTAINER_STATE_PAUSED
    with pytest.raises(grpc.aio.AioRpcError, match="is paused") as caught:
        await api.containers.KillContainer(pb.KillContainerRequest(container="web"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await api.containers.UnpauseContainer(pb.UnpauseContainerRequest(container="web"))
    assert (await shown(api, "web")).state == pb.CONTAINER_STATE_RUNNING


async def test_a_snapshot_from_its_making_to_its_end(api: Api) -> None:
    container = await running(api, "web")
    calls = api.snapshots
    request = snapshot_pb2.CreateSnapshotRequest(container="web", name="warm")
    made = (await calls.CreateSnapshot(request)).snapshot
    assert (made.name, made.source_container_id, made.source_name) == ("warm", container, "web")
    assert (made.image, made.compatibility.memory_mib) == ("alpine", 256)
    with pytest.raises(grpc.aio.AioRpcError, match="in use by snapshot"):
        await calls.CreateSnapshot(request)
    listed = (await calls.ListSnapshots(snapshot_pb2.ListSnapshotsRequest())).snapshots
    assert [item.id for item in listed] == [made.id]
    found = await calls.InspectSnapshot(snapshot_pb2.InspectSnapshotRequest(snapshot=made.id[:9]))
    assert found.snapshot.id == made.id
    options = pb.CloneOptions(count=2, name="twin", labels={"a": "b"}, env=["K=v"])
    restore = snapshot_pb2.RestoreSnapshotRequest(snapshot="warm", options=options)
    clones = (await calls.RestoreSnapshot(restore)).clones
    assert [(clone.name, clone.index) for clone in clones] == [("twin-0", 0), ("twin-1", 1)]
    clone = await shown(api, "twin-1")
    assert (clone.state, clone.start.path) == (pb.CONTAINER_STATE_RUNNING, "snapshot")
    assert dict(clone.spec.labels) == {"a": "b"}
    await api.containers.RollbackContainer(pb.RollbackContainerRequest(container="web", snapshot="warm"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.RollbackContainer(
            pb.RollbackContainerRequest(container="twin-0", snapshot="warm")
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    removed = await calls.RemoveSnapshot(snapshot_pb2.RemoveSnapshotRequest(snapshot="warm"))
    assert removed.snapshot_id == made.id


async def test_a_snapshot_travels(api: Api) -> None:
    await running(api, "web")
    await api.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(container="web", name="warm"))
    export = api.snapshots.ExportSnapshot(snapshot_pb2.ExportSnapshotRequest(snapshot="warm"))
    data = b"".join([piece.data async for piece in export])
    await api.snapshots.RemoveSnapshot(snapshot_pb2.RemoveSnapshotRequest(snapshot="warm"))

    async def pieces() -> AsyncIterator[snapshot_pb2.ImportSnapshotRequest]:
        yield snapshot_pb2.ImportSnapshotRequest(name="cold")
        for at in range(0, len(data), 100):
            yield snapshot_pb2.ImportSnapshotRequest(data=data[at : at + 100])

    imported = (await api.snapshots.ImportSnapshot(pieces())).snapshot
    assert (imported.name, imported.source_name) == ("cold", "web")

    async def nothing() -> AsyncIterator[snapshot_pb2.ImportSnapshotRequest]:
        for data in b"":
            yield snapshot_pb2.ImportSnapshotRequest(data=bytes([data]))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.snapshots.ImportSnapshot(nothing())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_fork_and_a_sleep(api: Api) -> None:
    await running(api, "web")
    options = pb.CloneOptions(name="child")
    forked = await api.containers.ForkContainer(pb.ForkContainerRequest(container="web", options=options))
    assert [clone.name for clone in forked.clones] == ["child"]
    await api.containers.HibernateContainer(pb.HibernateContainerRequest(container="web"))
    asleep = await shown(api, "web")
    assert asleep.state == pb.CONTAINER_STATE_HIBERNATED
    assert asleep.HasField("finished_at")
    await api.containers.WakeContainer(pb.WakeContainerRequest(container="web"))
    assert (await shown(api, "web")).state == pb.CONTAINER_STATE_RUNNING


async def test_what_needs_memory_that_is_not_there_says_so(api: Api) -> None:
    await running(api, "web")
    request = pb.ForkContainerRequest(container="web", options=pb.CloneOptions(count=15))
    with pytest.raises(grpc.aio.AioRpcError, match="15 x ") as caught:
        await api.containers.ForkContainer(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
