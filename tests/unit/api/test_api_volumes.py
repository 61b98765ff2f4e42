# SPDX-License-Identifier: Apache-2.0
"""VolumeService, and what ContainerService says of mounts, over their socket."""

from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2, snapshot_pb2_grpc, volume_pb2, volume_pb2_grpc
from tests.unit.api.conftest import Api


def volumes_of(channel: grpc.aio.Channel) -> Any:
    return volume_pb2_grpc.VolumeServiceStub(channel)


async def test_a_volume_from_its_making_to_its_end(api: Api) -> None:
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        calls = volumes_of(channel)
        asked = volume_pb2.CreateVolumeRequest(name="db", size_bytes=1 << 30, labels={"a": "b"})
        made = (await calls.CreateVolume(asked)).volume
        assert (made.name, made.size_bytes, made.driver, dict(made.labels)) == (
            "db",
            1 << 30,
            "local",
            {"a": "b"},
        )
        spec = pb.ContainerSpec(image="alpine", args=["sleep"], name="web")
        spec.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="db", destination="/data", readonly=True)
        spec.mounts.add(type=pb.MOUNT_TYPE_VOLUME, destination="/x")
        await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
        answer = await api.containers.InspectContainer(pb.InspectContainerRequest(container="web"))
        named, anonymous = answer.container.spec.mounts
        assert (named.source, named.readonly, named.anonymous) == ("db", True, False)
        assert (len(anonymous.source), anonymous.anonymous) == (64, True)
        shown = (await calls.InspectVolume(volume_pb2.InspectVolumeRequest(volume="db"))).volume
        assert [(user.container_name, user.readonly) for user in shown.users] == [("web", True)]
        with pytest.raises(grpc.aio.AioRpcError, match="is in use by container web") as caught:
            await calls.RemoveVolume(volume_pb2.RemoveVolumeRequest(volume="db"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await api.containers.RemoveContainer(pb.RemoveContainerRequest(container="web", volumes=True))
        request = volume_pb2.ListVolumesRequest(filters=[volume_pb2.VolumeFilter(key="label", value="a")])
        assert [item.name for item in (await calls.ListVolumes(request)).volumes] == ["db"]
        pruned = await calls.PruneVolumes(volume_pb2.PruneVolumesRequest(all=True))
        assert list(pruned.removed) == ["db"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.RemoveVolume(volume_pb2.RemoveVolumeRequest(volume="db"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_volume_grows_and_its_snapshots_are_among_the_others(api: Api) -> None:
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        calls: Any = volumes_of(channel)
        snapshots: Any = snapshot_pb2_grpc.SnapshotServiceStub(channel)
        await calls.CreateVolume(volume_pb2.CreateVolumeRequest(name="db", size_bytes=1 << 30))
        asked = volume_pb2.ResizeVolumeRequest(volume="db", size_bytes=2 << 30)
        assert (await calls.ResizeVolume(asked)).volume.size_bytes == 2 << 30
        create = snapshot_pb2.CreateSnapshotRequest(volume="db", name="before")
        taken = (await snapshots.CreateSnapshot(create)).snapshot
        assert (taken.volume, taken.consistency, taken.name) == ("db", "detached", "before")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await snapshots.CreateSnapshot(create)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        for wrong in ({}, {"volume": "db", "container": "web"}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(**wrong))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        listed = await snapshots.ListSnapshots(snapshot_pb2.ListSnapshotsRequest())
        assert [item.id for item in listed.snapshots] == [taken.id]
        inspect = snapshot_pb2.InspectSnapshotRequest(snapshot=taken.id[:12])
        assert (await snapshots.InspectSnapshot(inspect)).snapshot == taken
        begun = volume_pb2.CreateVolumeRequest(name="copy", snapshot="before")
        assert (await calls.CreateVolume(begun)).volume.size_bytes == 2 << 30
        remove = snapshot_pb2.RemoveSnapshotRequest(snapshot="before")
        assert (await snapshots.RemoveSnapshot(remove)).snapshot_id == taken.id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await snapshots.RemoveSnapshot(remove)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_volume_goes_out_comes_in_and_is_filled(api: Api) -> None:
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        calls: Any = volumes_of(channel)
        await calls.CreateVolume(volume_pb2.CreateVolumeRequest(name="db", size_bytes=1 << 30))
        exported = calls.ExportVolume(volume_pb2.ExportVolumeRequest(volume="db"))
        data = [response.data async for response in exported]
        first = volume_pb2.ImportVolumeRequest(volume="back", labels={"a": "b"})
        requests = [first, *(volume_pb2.ImportVolumeRequest(data=piece) for piece in data)]
        made = (await calls.ImportVolume(iter(requests))).volume
        assert (made.name, made.size_bytes, dict(made.labels)) == ("back", 1 << 30, {"a": "b"})
        large = volume_pb2.ImportVolumeRequest(volume="large", data=bytes((1 << 20) + 1))
        for wrong in ([], [large], [volume_pb2.ImportVolumeRequest(volume="wrong", data=b"nonsense")]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.ImportVolume(iter(wrong))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        fill = [volume_pb2.FillVolumeRequest(volume="db"), volume_pb2.FillVolumeRequest(data=b"tar")]
        with pytest.raises(grpc.aio.AioRpcError, match="hung up before the end"):
            await calls.FillVolume(iter(fill))
        await calls.FillVolume(iter([*fill, volume_pb2.FillVolumeRequest(end=True)]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.FillVolume(iter([volume_pb2.FillVolumeRequest(volume="none")]))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("mount", "code"),
    [
        (pb.Mount(destination="/x"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Mount.FromString(b"\x08\x09\x1a\x02/x"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.Mount(type=pb.MOUNT_TYPE_TMPFS, destination="/x", mode=1 << 20),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source="../x", destination="/x"),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (pb.Mount(type=pb.MOUNT_TYPE_VOLUME, driver="nfs", destination="/x"), grpc.StatusCode.UNIMPLEMENTED),
        (
            pb.Mount(type=pb.MOUNT_TYPE_BIND, source="s", destination="/x"),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.Mount(type=pb.MOUNT_TYPE_BIND, source="/s", destination="/x", uid_map=[pb.IdRange(host=1)]),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_a_mount_that_cannot_be_is_refused(api: Api, mount: pb.Mount, code: grpc.StatusCode) -> None:
    spec = pb.ContainerSpec(image="alpine", args=["sleep"], mounts=[mount])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
    assert caught.value.code() is code
    assert api.world.volumes.kept == {}
