# SPDX-License-Identifier: Apache-2.0
"""Images in and out over the wire: what is passed on, what is bounded, what a hang-up ends."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2, system_pb2
from hyper.v1 import image_pb2 as pb
from hyperd import desk as desk_module
from hyperd.api import uploads
from hyperd.config import Config, DaemonConfig
from hyperd.desk import Desk
from hyperd.host.workers import Workers
from hyperd.model.image import Credentials, NewImage, Platform
from hyperd.model.volume import VolumeName, VolumeRequest
from tests.fakes.world import eventually
from tests.unit.api.conftest import Api

MIB = 1 << 20
SECRET = "hush-90210"


async def collect(call: object) -> list[object]:
    return [item async for item in call]  # type: ignore[attr-defined]


async def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collect(call) if hasattr(call, "__aiter__") else call)  # type: ignore[misc]
    return caught.value.code()


async def test_a_push_tells_its_progress_and_ends_with_the_tag(api: Api) -> None:
    request = pb.PushImageRequest(reference="alpine", all_tags=True, tls_insecure=True)
    request.credentials.username, request.credentials.password = "me", SECRET
    responses = [item async for item in api.images.PushImage(request)]
    assert [item.WhichOneof("kind") for item in responses] == ["notice", *["blob"] * 4, "pushed"]
    assert responses[2].blob.phase == pb.PUSH_PHASE_MOUNTED
    assert responses[-1].pushed.manifest_bytes == 528
    expected = {"all_tags": True, "tls_insecure": True, "credentials": Credentials("me", SECRET)}
    assert api.store.asked == [("push", expected)]


async def test_credentials_are_nobodys_when_they_are_unset(api: Api) -> None:
    api.world.images.publish("busybox")
    await collect(api.images.PullImage(pb.PullImageRequest(reference="busybox", all_tags=True)))
    [(_, options)] = api.store.asked
    assert (options["credentials"], options["all_tags"]) == (None, True)
    request = pb.InspectManifestRequest(
        reference="alpine", credentials=pb.RegistryCredentials(identity_token="t")
    )
    assert (await api.images.InspectManifest(request)).manifest == b"{}"
    assert api.store.asked[-1][1]["credentials"] == Credentials(identity_token="t")


async def test_credentials_are_bounded_and_never_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "hyperd")
    request = pb.PushImageRequest(reference="nosuch")
    request.credentials.password = SECRET
    assert await code_of(api.images.PushImage(request)) is grpc.StatusCode.NOT_FOUND
    request.credentials.password = SECRET * 10_000
    assert await code_of(api.images.PushImage(request)) is grpc.StatusCode.INVALID_ARGUMENT
    assert SECRET not in caplog.text
    assert SECRET not in repr(Credentials("me", SECRET))


async def test_one_who_hangs_up_leaves_the_push(api: Api) -> None:
    api.store.gate.clear()
    call = api.images.PushImage(pb.PushImageRequest(reference="alpine"))
    await call.read()
    call.cancel()
    await eventually(lambda: api.store.left)


async def test_a_tag(api: Api) -> None:
    answer = await api.images.TagImage(pb.TagImageRequest(image="alpine", reference="mine:1"))
    assert answer.tag == "docker.io/library/mine:1"
    assert await code_of(api.images.TagImage(pb.TagImageRequest(image="nosuch"))) is grpc.StatusCode.NOT_FOUND


async def test_a_save_comes_in_messages_of_a_mebibyte(api: Api) -> None:
    pieces = await collect(api.images.SaveImages(pb.SaveImagesRequest(images=["alpine"])))
    assert [len(piece.data) for piece in pieces] == [MIB, MIB, MIB // 2]  # type: ignore[attr-defined]
    for names, code in (
        (["nosuch"], grpc.StatusCode.NOT_FOUND),
        ([], grpc.StatusCode.INVALID_ARGUMENT),
        (["alpine"] * 1001, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        assert await code_of(api.images.SaveImages(pb.SaveImagesRequest(images=names))) is code
    wrong = pb.SaveImagesRequest(images=["alpine"], platform="linux")
    assert await code_of(api.images.SaveImages(wrong)) is grpc.StatusCode.INVALID_ARGUMENT
    await collect(api.images.SaveImages(pb.SaveImagesRequest(images=["alpine"], platform="linux/arm64")))
    assert api.store.asked[-1] == ("save", {"platform": Platform("linux", "arm64")})


async def test_a_save_that_nobody_reads_waits_and_ends_with_its_caller(api: Api) -> None:
    api.store.gate.clear()  # endless
    call = api.images.SaveImages(pb.SaveImagesRequest(images=["alpine"]))
    await call.read()
    await eventually(lambda: api.store.saved_bytes)
    assert api.store.saved_bytes < 64 * MIB
    call.cancel()
    await eventually(lambda: api.store.left)


async def test_a_load_that_nobody_listens_to_gives_its_place_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LISTENS_TIMEOUT_S", 0.05)
    api.store.tells_without_end = True

    async def requests():
        yield pb.LoadImagesRequest(data=b"a")

    call = api.images.LoadImages(requests())
    await eventually(lambda: api.store.left)
    with pytest.raises(grpc.aio.AioRpcError, match="nobody has read") as caught:
        await collect(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_load(api: Api) -> None:
    async def requests():
        yield pb.LoadImagesRequest(platform="linux/arm64", data=b"a")
        yield pb.LoadImagesRequest(data=b"b" * MIB)

    responses = [item async for item in api.images.LoadImages(requests())]
    assert [item.WhichOneof("kind") for item in responses] == ["layer", "image"]
    assert responses[-1].image.tags == ["docker.io/library/loaded:1"]
    assert api.store.asked == [("load", {"platform": Platform("linux", "arm64")})]
    assert api.store.received == MIB + 1


async def test_an_upload_is_taken_no_faster_than_it_is_used(api: Api) -> None:
    api.store.gate.clear()
    sent = 0

    async def requests():
        nonlocal sent
        for _ in range(64):
            yield pb.LoadImagesRequest(data=bytes(MIB))
            sent += 1

    call = api.images.LoadImages(requests())
    await eventually(lambda: api.store.received)
    assert (api.store.received, sent < 64) == (MIB, True)
    call.cancel()
    await eventually(lambda: api.store.left)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [pb.LoadImagesRequest(platform="linux")],
        [pb.LoadImagesRequest(data=bytes(MIB + 1))],
        [pb.LoadImagesRequest(), pb.LoadImagesRequest(data=bytes(MIB + 1))],
    ],
)
async def test_a_load_that_cannot_be(api: Api, messages: list[pb.LoadImagesRequest]) -> None:
    assert await code_of(api.images.LoadImages(iter(messages))) is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_import(api: Api) -> None:
    options = pb.ImportOptions(reference="r:1", message="why", changes=["USER me"], platform="linux/amd64")
    messages = [pb.ImportImageRequest(options=options), pb.ImportImageRequest(data=b"root")]
    answer = await api.images.ImportImage(iter([*messages, pb.ImportImageRequest(end=True)]))
    assert answer.image.tags == ["docker.io/library/r:1"]
    new = NewImage("r:1", message="why", changes=("USER me",), platform=Platform("linux", "amd64"))
    assert api.store.asked == [("import", {"new": new})]
    assert api.store.received == 4


async def test_an_import_that_stops_before_its_end_is_none(api: Api) -> None:
    messages = [pb.ImportImageRequest(options=pb.ImportOptions()), pb.ImportImageRequest(data=b"root")]
    assert await code_of(api.images.ImportImage(iter(messages))) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [pb.ImportImageRequest(data=b"x")],
        [
            pb.ImportImageRequest(options=pb.ImportOptions()),
            pb.ImportImageRequest(options=pb.ImportOptions()),
        ],
        [pb.ImportImageRequest(options=pb.ImportOptions(changes=["USER me"] * 1001))],
    ],
)
async def test_an_import_that_cannot_be(api: Api, messages: list[pb.ImportImageRequest]) -> None:
    assert await code_of(api.images.ImportImage(iter(messages))) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_prune_knows_what_is_in_use(api: Api) -> None:
    spec = container_pb2.ContainerSpec(image="alpine", args=["sleep"])
    await api.containers.CreateContainer(container_pb2.CreateContainerRequest(spec=spec))
    api.world.images.add("unused:1")
    request = pb.PruneImagesRequest(all=True, filters=[pb.ImageFilter(key="label", value="a=b")])
    answer = await api.images.PruneImages(request)
    assert (list(answer.untagged), answer.reclaimed_bytes) == (["docker.io/library/unused:1"], 4096)
    assert api.store.asked == [("prune", {"everything": True, "filters": [("label", "a=b")]})]


def _noting_thread(
    names: set[str], look: Callable[[Path], tuple[int, int]]
) -> Callable[[Path], tuple[int, int]]:
    def noting(path: Path) -> tuple[int, int]:
        names.add(threading.current_thread().name)
        return look(path)

    return noting


async def test_disk_usage_counts_blocks_and_users(
    api: Api, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = container_pb2.ContainerSpec(image="alpine", args=["sleep"], name="c")
    await api.containers.CreateContainer(container_pb2.CreateContainerRequest(spec=spec))
    nothing: Any = None
    files = Workers("test", 1)
    request.addfinalizer(files.close)
    stores: list[Any] = [api.store, nothing, nothing, nothing, api.world.storage, api.world.snapshots, files]
    config: Any = Config(DaemonConfig(state_dir=api.world.root))
    desk = Desk(config, nothing, "", nothing, api.fleet, *stores)
    await api.world.volumes.create(VolumeRequest(VolumeName("db"), 1 << 30))
    await api.fleet.living_volumes.snapshot(VolumeName("db"), "before")
    usage = await desk.disk_usage()
    assert [(image.containers, image.unique_bytes) for image in usage.images] == [(1, 20)]
    assert (usage.layers_bytes, usage.unowned_bytes) == (30, 5)
    assert [(volume.name, volume.size_bytes) for volume in usage.volumes] == [("db", 1 << 30)]
    assert [(saved.kind, saved.name) for saved in usage.snapshots] == [("volume", "before")]
    assert usage.free_bytes > 0
    [container] = usage.containers
    assert (container.name, container.running, container.writable_bytes) == ("c", False, 0)
    await api.containers.StartContainer(container_pb2.StartContainerRequest(container="c"))
    disk = await api.world.storage.create_writable(next(iter(await api.world.storage.list_sandboxes())))
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 5000)
    looking: set[str] = set()
    monkeypatch.setattr("hyperd.desk._sizes", _noting_thread(looking, desk_module._sizes))
    [container] = (await desk.disk_usage()).containers
    assert looking
    assert threading.current_thread().name not in looking
    assert container.running
    assert 5000 <= container.writable_bytes < 1 << 20
    assert container.writable_size_bytes == 1 << 30
    assert (await api.system.GetDiskUsage(system_pb2.GetDiskUsageRequest())).layers_bytes == 4096
