# SPDX-License-Identifier: Apache-2.0
import grpc
import pytest

from hyper.v1 import container_pb2, system_pb2
from hyper.v1 import image_pb2 as pb
from hyperd.api.image_convert import decode_platform
from hyperd.errors import InvalidError, UnavailableError
from hyperd.model.image import Platform
from tests.fakes.world import eventually
from tests.unit.api.conftest import Api


async def test_a_pull_tells_its_progress_and_ends_with_the_image(api: Api) -> None:
    api.world.images.publish("busybox")
    responses = [item async for item in api.images.PullImage(pb.PullImageRequest(reference="busybox"))]
    kinds = [item.WhichOneof("kind") for item in responses]
    assert kinds[0] == "notice"
    assert kinds[-1] == "image"
    assert {item.layer.phase for item in responses[1:-1]} == {pb.LAYER_PHASE_DOWNLOADING, pb.LAYER_PHASE_DONE}
    assert responses[-1].image.tags == ["docker.io/library/busybox:latest"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.PullImageRequest(reference="nope"), grpc.StatusCode.NOT_FOUND),
        (pb.PullImageRequest(reference="busybox", platform="linux"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_pull_that_fails_says_why(
    api: Api, request_: pb.PullImageRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in api.images.PullImage(request_):
            pass
    assert caught.value.code() is code


async def test_an_unreachable_registry_is_unavailable(api: Api) -> None:
    api.world.images.fail_next_pull = UnavailableError("refused", subject="registry.test")
    with pytest.raises(grpc.aio.AioRpcError, match=r"registry.test: refused"):
        async for _ in api.images.PullImage(pb.PullImageRequest(reference="busybox")):
            pass


async def test_one_who_hangs_up_leaves_the_pull(api: Api) -> None:
    store = api.world.images
    store.publish("busybox")
    store.gate.clear()
    left: list[bool] = []
    pull = store.pull

    async def watched(reference: str, **options: object):
        try:
            async for event in pull(reference):
                yield event
        finally:
            left.append(True)

    store.pull = watched  # type: ignore[method-assign]
    call = api.images.PullImage(pb.PullImageRequest(reference="busybox"))
    await call.read()
    call.cancel()
    await eventually(lambda: left)


async def test_images_are_listed_by_any_of_their_names(api: Api) -> None:
    api.world.images.add("busybox")
    for names, count in (
        (["busybox"], 1),
        (["alpine:latest"], 1),
        (["docker.io/library/alpine"], 1),
        ([], 2),
        (["x"], 0),
    ):
        listed = await api.images.ListImages(pb.ListImagesRequest(references=names))
        assert len(listed.images) == count


async def test_an_image_in_use_stays(api: Api) -> None:
    image = (await api.images.InspectImage(pb.InspectImageRequest(image="alpine"))).image
    spec = container_pb2.ContainerSpec(image="alpine", args=["sleep"])
    await api.containers.CreateContainer(container_pb2.CreateContainerRequest(spec=spec))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.images.RemoveImage(pb.RemoveImageRequest(image="alpine"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    removed = await api.images.RemoveImage(pb.RemoveImageRequest(image="alpine", force=True))
    assert removed.untagged == image.tags


async def test_the_daemon_tells_of_itself(api: Api) -> None:
    assert (await api.system.GetVersion(system_pb2.GetVersionRequest())).api_version == "1"
    assert (await api.system.GetInfo(system_pb2.GetInfoRequest())).accelerator == "tcg"
    (check,) = (await api.system.CheckHost(system_pb2.CheckHostRequest())).checks
    assert (check.level, check.advice) == (system_pb2.CHECK_LEVEL_FAILED, "install it")


def test_a_platform_is_os_slash_architecture() -> None:
    assert decode_platform("") is None
    assert decode_platform("linux/arm/v7") == Platform("linux", "arm", "v7")
    for alias in ("arm64", "linux/aarch64", "Linux/ARM64"):
        assert decode_platform(alias) == Platform("linux", "arm64")
    for wrong in ("linux", "linux/", "/", "a/b/c/d", "linux/a\0b", "linux/a b"):
        with pytest.raises(InvalidError):
            decode_platform(wrong)


async def test_a_search_is_passed_on_with_dockers_limit(api: Api) -> None:
    for name in ("busybox", "user/busybox"):
        api.world.images.publish(name)
    found = await api.images.SearchImages(pb.SearchImagesRequest(term="busybox"))
    assert [image.name for image in found.images] == ["docker.io/library/busybox", "docker.io/user/busybox"]
    found = await api.images.SearchImages(pb.SearchImagesRequest(term="busybox", limit=1))
    assert len(found.images) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.images.SearchImages(pb.SearchImagesRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
