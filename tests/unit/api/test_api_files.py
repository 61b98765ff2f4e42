# SPDX-License-Identifier: Apache-2.0
"""The calls of ContainerService about files, over their socket."""

import asyncio
import stat
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from tests.fakes.archives import PIECE_BYTES, FakeFiles
from tests.fakes.world import eventually
from tests.unit.api.conftest import Api

BIG = b"x" * (3 * PIECE_BYTES)


async def running(api: Api, name: str, *, start: bool = True) -> FakeFiles:
    spec = pb.ContainerSpec(image="alpine", args=["sleep"], name=name)
    made = await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
    if start:
        await api.containers.StartContainer(pb.StartContainerRequest(container=name))
    return api.world.hypervisor.files.setdefault(made.container_id, FakeFiles())


async def collected(call: Any) -> list[Any]:
    return [item async for item in call]


@pytest.mark.parametrize("start", [True, False])
async def test_a_commit_tells_how_far_it_is_and_ends_with_the_image(api: Api, start: bool) -> None:
    (await running(api, "web", start=start)).synced[b"/a"] = BIG
    request = pb.CommitContainerRequest(
        container="web", reference="mine:1", author="me", message="m", changes=["CMD x"], no_pause=True
    )
    answers = await collected(api.containers.CommitContainer(request))
    [made] = api.world.images.commits
    assert [answer.WhichOneof("kind") for answer in answers] == ["done_bytes", "image_id"]
    assert answers[0].done_bytes == len(made.layer) == len(BIG) + 3
    assert answers[-1].image_id in api.world.images.images
    assert (made.new.reference, made.new.author, made.new.message) == ("mine:1", "me", "m")
    assert made.new.changes == ("CMD x",)


async def test_changes_come_in_order_and_many_to_a_message(api: Api) -> None:
    files = await running(api, "web")
    files.synced |= {b"/%05d\xff" % number: b"" for number in range(3000)}
    answers = await collected(api.containers.ListChanges(pb.ListChangesRequest(container="web")))
    assert [len(answer.changes) for answer in answers] == [1024, 1024, 952]
    paths = [change.path for answer in answers for change in answer.changes]
    assert paths == sorted(files.synced)
    assert answers[0].changes[0].kind == pb.CHANGE_KIND_ADDED


async def test_a_container_that_changed_nothing_has_no_changes(api: Api) -> None:
    await running(api, "web", start=False)
    assert await collected(api.containers.ListChanges(pb.ListChangesRequest(container="web"))) == []


async def test_an_export_is_its_tar(api: Api) -> None:
    (await running(api, "web")).synced[b"/a"] = BIG
    answers = await collected(api.containers.ExportContainer(pb.ExportContainerRequest(container="web")))
    assert b"".join(answer.data for answer in answers) == b"/a\n" + BIG


async def test_a_path_is_its_stat_and_its_tar(api: Api) -> None:
    (await running(api, "web")).synced[b"/etc/a"] = BIG
    first, *rest = await collected(
        api.containers.ReadPath(pb.ReadPathRequest(container="web", path=b"etc/a"))
    )
    assert (first.stat.name, first.stat.size_bytes) == (b"a", len(BIG))
    assert stat.S_ISREG(first.stat.mode)
    assert first.stat.modified_at.ToJsonString() == "2026-01-02T03:04:05Z"
    assert b"".join(answer.data for answer in rest) == BIG


async def test_a_path_that_is_not_there_is_not_found(api: Api) -> None:
    await running(api, "web")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(api.containers.ReadPath(pb.ReadPathRequest(container="web", path=b"/absent")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def options(container: str = "web") -> pb.WritePathRequest:
    return pb.WritePathRequest(options=pb.WritePathOptions(container=container, path=b"/srv"))


END = pb.WritePathRequest(end=True)


def data(content: bytes) -> pb.WritePathRequest:
    return pb.WritePathRequest(data=content)


@pytest.mark.parametrize("start", [True, False])
async def test_a_tar_is_written(api: Api, start: bool) -> None:
    files = await running(api, "web", start=start)
    await api.containers.WritePath(iter([options(), data(b"one"), data(b"two"), END]))
    assert files.all() == {b"/srv/written": b"onetwo"}
    assert bool(files.synced) is not start


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "must be 'options'"),
        ([data(b"x")], "must be 'options'"),
        ([options(), options()], "only 'data' and 'end'"),
        ([options(), data(b"x" * ((1 << 20) + 1))], "more than 1048576 bytes"),
        ([options(), data(b"no tar"), END], "no tar"),
    ],
)
async def test_what_cannot_be_written_is_refused(
    api: Api, requests: list[pb.WritePathRequest], said: str
) -> None:
    files = await running(api, "web")
    with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
        await api.containers.WritePath(iter(requests))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert files.all() == {}


@pytest.mark.parametrize("start", [True, False])
async def test_a_client_who_hangs_up_ends_its_call_and_leaves_nothing(api: Api, start: bool) -> None:
    files = await running(api, "web", start=start)
    files.synced[b"/a"], files.pieces = BIG, 1
    call = api.containers.CommitContainer(pb.CommitContainerRequest(container="web"))
    reading = asyncio.get_running_loop().create_task(collected(call))
    await eventually(lambda: files.pieces == 0)
    assert files.frozen_for == 1
    call.cancel()
    await asyncio.wait((reading,))
    await eventually(lambda: files.frozen_for == 0 and api.world.images.committing == 0)
    if not start:
        await eventually(lambda: not api.world.hypervisor.running and not api.world.ledger.admission.held)


async def test_a_client_who_hangs_up_in_the_middle_of_a_tar_writes_nothing(api: Api) -> None:
    files = await running(api, "web", start=False)
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[pb.WritePathRequest]:
        yield options()
        yield data(b"tar")
        sent.set()
        await asyncio.Event().wait()

    call = api.containers.WritePath(requests())
    await sent.wait()
    await eventually(lambda: any("piece" in agent.calls for agent in api.world.hypervisor.agents.values()))
    call.cancel()
    await eventually(lambda: not api.world.hypervisor.running)
    assert files.all() == {}


async def test_what_stops_before_its_end_is_not_written(api: Api) -> None:
    """As it looks when a client hangs up, a moment before the call is known to be cancelled."""
    files = await running(api, "web")
    with pytest.raises(grpc.aio.AioRpcError, match="hung up before the end") as caught:
        await api.containers.WritePath(iter([options(), data(b"tar")]))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert files.all() == {}


async def test_a_removal_tells_a_client_who_does_not_read(api: Api) -> None:
    files = await running(api, "web", start=False)
    files.synced[b"/a"] = b"x" * (64 << 20)
    call = api.containers.ExportContainer(pb.ExportContainerRequest(container="web"))
    answers = aiter(call)
    await anext(answers)
    await eventually(lambda: api.world.hypervisor.running)
    await api.containers.RemoveContainer(pb.RemoveContainerRequest(container="web", force=True))
    assert not api.world.hypervisor.running
    with pytest.raises(grpc.aio.AioRpcError, match="was removed while its files were open"):
        await collected(answers)
