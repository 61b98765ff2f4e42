# SPDX-License-Identifier: Apache-2.0
"""TemplateService over its socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2
from tests.fakes.world import World
from tests.unit.api.conftest import Api, served


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with served(World(tmp_path, templates_enabled=True)) as made:
        yield made


async def test_a_size_is_built_with_a_network_and_without_and_shown_with_what_it_depends_on(api: Api) -> None:
    request = snapshot_pb2.BuildTemplateRequest(vcpus=2, memory_mib=512)
    built = (await api.templates.BuildTemplate(request)).templates
    assert [(item.compatibility.vcpus, item.compatibility.memory_mib) for item in built] == [(2, 512)] * 2
    with_network, without = (item.compatibility.layout for item in built)
    assert "nic" in with_network
    assert "nic" not in without
    listed = (await api.templates.ListTemplates(snapshot_pb2.ListTemplatesRequest())).templates
    assert {item.id for item in listed} == {item.id for item in built}
    assert {file.name for file in listed[0].files} == {"ram", "state"}
    assert listed[0].created_at.seconds
    again = (await api.templates.BuildTemplate(request)).templates
    assert [item.id for item in again] == [item.id for item in built]


async def test_zero_is_the_default_s_size(api: Api) -> None:
    built = (await api.templates.BuildTemplate(snapshot_pb2.BuildTemplateRequest())).templates
    assert {(item.compatibility.vcpus, item.compatibility.memory_mib) for item in built} == {(1, 256)}


async def test_a_size_beyond_the_host_is_refused(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.templates.BuildTemplate(snapshot_pb2.BuildTemplateRequest(memory_mib=1 << 20))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_one_is_removed_by_the_beginning_of_its_id(api: Api) -> None:
    built = (await api.templates.BuildTemplate(snapshot_pb2.BuildTemplateRequest())).templates
    request = snapshot_pb2.RemoveTemplateRequest(template=built[0].id[:12])
    assert (await api.templates.RemoveTemplate(request)).template_id == built[0].id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.templates.RemoveTemplate(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_container_shows_how_it_started(api: Api) -> None:
    await api.templates.BuildTemplate(snapshot_pb2.BuildTemplateRequest())
    created = await api.containers.CreateContainer(
        pb.CreateContainerRequest(spec=pb.ContainerSpec(image="alpine", args=["sleep"]))
    )
    started = await api.containers.StartContainer(pb.StartContainerRequest(container=created.container_id))
    start = started.container.start
    assert (start.path, start.note) == ("template", "")
    assert start.phases[0].name == "prepare"
