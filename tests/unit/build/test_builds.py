# SPDX-License-Identifier: Apache-2.0
"""Builds over a fleet of fakes: what is done in which order, what fails where, and that no builder is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.build import BuilderSizing, Event, plan
from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from hyperd.model.build import BuildFailed, BuildSpec, Built, GitContext, Secret
from hyperd.model.container import ContainerSpec
from hyperd.model.guest import ProcessExit
from hyperd.model.image import Credentials, PullNotice
from tests.fakes.builds import BUILDER, BUILT_ID, DONE, HOLD, NEW_LAYER, Shop, working
from tests.fakes.image import image_named
from tests.fakes.memory import tmp_path as tmp_path  # noqa: PLC0414 - a fixture
from tests.fakes.world import World, eventually


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    world = World(tmp_path)
    async with world.daemon() as fleet, working(world, fleet, tmp_path) as shop:
        yield shop


async def test_a_build_ends_with_an_image_its_tags_and_no_builder(shop: Shop):
    shop.script("buildah", DONE, b"STEP 1/1\n")
    built = await shop.build(tags=("mine:1", "mine:2"))
    assert isinstance(built, Built)
    assert built.tags == ("docker.io/library/mine:1", "docker.io/library/mine:2")
    assert built.image.image_id == BUILT_ID
    assert "STEP 1/1" in shop.said
    # What the store has is not read again.
    assert shop.world.images.built_layers == {NEW_LAYER: b"layer"}
    shop.require_nothing_left()


async def test_an_image_that_is_here_already_is_not_taken_out_of_the_builder(shop: Shop):
    await shop.build()
    shop.world.images.built_layers.clear()
    assert isinstance(await shop.build(tags=("again",)), Built)
    assert not shop.world.images.built_layers
    assert "docker.io/library/again:latest" in (await shop.world.images.get(BUILT_ID)).tags


async def test_a_step_that_fails_is_a_result_and_leaves_nothing(shop: Shop):
    before = dict(shop.world.images.images)
    shop.script("buildah", ProcessExit(7), b"oh dear\n")
    shop.world.images.images.update(before)
    assert await shop.build(tags=("never",), dockerfile=b"FROM scratch") == BuildFailed(7)
    assert shop.said == "oh dear\n"
    assert shop.world.images.images == before
    shop.require_nothing_left()


async def test_a_base_image_that_is_missing_is_pulled_with_the_callers_credentials(shop: Shop):
    shop.world.images.publish("far.example/base")
    await shop.build(dockerfile=b"FROM far.example/base\nCOPY --from=alpine / /x")
    assert shop.asked == ["far.example/base"]
    assert shop.world.images.pulls == ["far.example/base"]
    assert shop.world.images.credentials == [Credentials("me", "secret")]
    assert PullNotice("Pulling far.example/base") in shop.heard


async def test_a_name_of_hexadecimal_letters_is_no_id(shop: Shop):
    name = image_named("alpine").image_id.removeprefix("sha256:")[:12]
    shop.world.images.publish(name)
    await shop.build(dockerfile=b"FROM " + name.encode())
    assert shop.world.images.pulls == [name]
    await shop.build(dockerfile=b"FROM " + name.encode())
    assert shop.world.images.pulls == [name]


async def test_pull_asks_the_registry_for_what_is_here(shop: Shop):
    shop.world.images.publish("alpine")
    await shop.build(pull=True)
    assert shop.world.images.pulls == ["alpine"]


@pytest.mark.parametrize(
    "error", [NotFoundError("no such tag"), DeniedError("no"), UnavailableError("no such registry")]
)
async def test_a_base_image_that_cannot_be_had_ends_the_build(shop: Shop, error: HyperError):
    shop.world.images.fail_next_pull = error
    with pytest.raises(type(error)):
        await shop.build(dockerfile=b"FROM far.example/base")
    shop.require_nothing_left()


async def test_a_name_that_is_none_is_the_engines_to_complain_of(shop: Shop):
    shop.script("buildah", ProcessExit(125), b"invalid reference format")
    shop.world.images.fail_next_pull = InvalidError("malformed image reference")
    assert await shop.build(dockerfile=b"FROM NOT/A:NAME:") == BuildFailed(125)


async def test_a_caller_who_goes_while_the_builder_is_being_recorded_leaves_none(shop: Shop):
    shop.world.volumes.may_settle.clear()
    building = asyncio.create_task(shop.build())
    await eventually(lambda: bool(shop.fleet.views()))
    building.cancel()
    await asyncio.wait({building}, timeout=0.05)
    shop.world.volumes.may_settle.set()
    await asyncio.wait({building})
    assert building.cancelled()
    shop.require_nothing_left()


async def test_secrets_reach_the_builder_on_standard_input_alone(shop: Shop):
    shop.answer("/build/Dockerfile", b"FROM scratch")
    shop.script("sh", None)
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(shop.build(dockerfile=b"", secrets=(Secret("word", b"open-sesame"),)))
        await eventually(lambda: any(process.input_ended for process in shop.running("sh")))
        (process,) = shop.running("sh")
        assert bytes(process.received) == b"open-sesame"
        assert process.plan.args[-1] == "/run/hyper-build/word"
        assert "open-sesame" not in repr(process.plan)
        process.finish(DONE)
        assert isinstance(await building, Built)


@pytest.mark.parametrize(
    "verb", ["create_container", "start_container", "exec_process", "write_tree", "read_tree"]
)
async def test_whatever_fails_in_the_builder_leaves_nothing(shop: Shop, verb: str):
    shop.world.hypervisor.failing_verbs[verb] = UnavailableError("it broke")
    with pytest.raises(HyperError):
        await shop.build()
    shop.require_nothing_left()


@pytest.mark.parametrize(
    ("status", "error"), [(3, NotFoundError), (1, UnavailableError), (128, UnavailableError)]
)
async def test_a_repository_that_cannot_be_fetched_is_told_from_one_that_lacks_what_was_asked_for(
    shop: Shop, status: int, error: type[HyperError]
):
    git = GitContext("git://far.example/app", "v1", "/server/")
    command = f"/usr/libexec/hyper/git-context {git.url} v1 /build/context server"
    shop.script(command, ProcessExit(status), b"the reason\n")
    with pytest.raises(error) as caught:
        await shop.build(git=git)
    assert caught.value.evidence == "the reason"
    shop.require_nothing_left()


async def test_a_password_in_an_address_reaches_git_in_a_file_alone(shop: Shop):
    shop.script("sh", None)
    shop.script(
        "/usr/libexec/hyper/git-context", ProcessExit(1), b"cannot read https://me:sesame@far.example\n"
    )
    git = GitContext("https://me:sesame@far.example/app.git")
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(_outcome(shop.build(git=git)))
        await eventually(lambda: any(process.input_ended for process in shop.running("sh")))
        (process,) = shop.running("sh")
        assert bytes(process.received) == b"https://me:sesame@far.example\n"
        assert "sesame" not in repr(process.plan)
        process.finish(DONE)
    error = building.result()
    assert isinstance(error, UnavailableError)
    assert error.subject == "https://far.example/app.git"
    assert error.evidence == "cannot read https://***@far.example"
    shop.require_nothing_left()


async def test_a_machine_that_is_lost_in_the_middle_is_an_error(shop: Shop):
    shop.script("buildah", None)
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.running("buildah"))
        (sandbox_id,) = shop.world.hypervisor.running
        shop.world.hypervisor.crash(sandbox_id)
    assert isinstance(building.result(), UnavailableError)
    shop.require_nothing_left()


async def test_a_caller_who_goes_ends_the_build_and_the_next_has_its_turn(shop: Shop):
    shop.script("buildah", None)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.running("buildah"))
        second = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: PullNotice("waiting for another build to end") in shop.heard)
        assert len(shop.fleet.views()) == 1
        shop.script("buildah")
        first.cancel()
    assert isinstance(second.result(), Built)
    shop.require_nothing_left()


async def test_too_many_that_wait_are_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperd.build.service.MAX_WAITING", 1)
    shop.script("buildah", None)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.running("buildah"))
        second = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.heard)
        with pytest.raises(ExhaustedError):
            await shop.build()
        second.cancel()
        first.cancel()
    shop.require_nothing_left()


async def test_without_its_image_a_build_says_what_to_do(shop: Shop, tmp_path: Path):
    (tmp_path / "builder.tar").unlink()
    with pytest.raises(UnavailableError) as caught:
        await shop.build()
    assert "make setup" in caught.value.hint
    (tmp_path / "builder.tar").write_bytes(b"no tar")
    with pytest.raises(UnavailableError, match="no builder's image"):
        await shop.build()


@pytest.mark.parametrize("answer", [b"", b"sha256:zz", b"sha256:" + b"a" * 64 + b"/../x"])
async def test_an_engine_that_makes_no_sense_is_not_believed(shop: Shop, answer: bytes):
    shop.answer("/build/id", answer)
    with pytest.raises(HyperError):
        await shop.build(dockerfile=b"FROM scratch")
    shop.require_nothing_left()


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"config": {"digest": "sha256:../../etc"}}'])
async def test_a_manifest_that_makes_no_sense_is_not_believed(shop: Shop, manifest: bytes):
    shop.answer("/build/out/manifest.json", manifest)
    with pytest.raises(UnavailableError, match="no manifest"):
        await shop.build(dockerfile=b"FROM scratch")


async def test_a_request_that_cannot_be_meant_starts_nothing(shop: Shop):
    with pytest.raises(InvalidError):
        await shop.build(network="mine")
    assert not shop.world.hypervisor.definitions


async def test_what_an_earlier_daemon_was_building_is_ended_and_other_containers_are_not(tmp_path: Path):
    world = World(tmp_path)
    world.images.add(BUILDER, HOLD)
    async with world.daemon() as fleet:
        builder = plan.builder_of("abc", BUILDER, BuildSpec(), BuilderSizing(1.0, 256 << 20, 1 << 30))
        view, _ = await fleet.create(builder)
        await fleet.get(view.record.sandbox_id).start()
        mine, _ = await fleet.create(ContainerSpec("alpine", name="mine", labels={plan.LABEL: "abc"}))
    async with world.daemon() as fleet, working(world, fleet, tmp_path) as shop:
        assert isinstance(await shop.build(dockerfile=b"FROM scratch"), Built)
        assert [each.record.sandbox_id for each in fleet.views()] == [mine.record.sandbox_id]


@pytest.mark.parametrize("path", ["/build/id", "/build/out/manifest.json"])
async def test_a_file_that_is_larger_than_it_can_be_is_an_error_that_the_caller_hears(shop: Shop, path: str):
    """Also in the middle of it, when the reader has more in hand than is taken."""
    shop.answer(path, bytes(20 << 20))
    with pytest.raises(InvalidError, match="are taken"):
        await shop.build(dockerfile=b"FROM scratch")
    shop.require_nothing_left()


async def test_an_image_that_has_only_the_builders_name_is_not_run_as_the_builder(shop: Shop):
    images = shop.world.images.images
    builder, other = images[image_named(BUILDER).image_id], images[image_named("alpine").image_id]
    images[other.image_id] = replace(other, tags=(*other.tags, BUILDER))
    images[builder.image_id] = replace(builder, tags=())
    images[other.image_id] = images.pop(other.image_id)
    shop.script("buildah", None)
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.running("buildah"))
        assert [each.record.spec.image for each in shop.fleet.views()] == [builder.image_id]
        building.cancel()
    shop.require_nothing_left()


async def test_another_builder_takes_the_place_of_the_older_ones(shop: Shop):
    images = shop.world.images
    del images.images[image_named(BUILDER).image_id]
    images.publish(BUILDER, HOLD)
    images.add("docker.io/hyper/builder:0")
    images.add("docker.io/hyper/builders:0")
    await shop.build(dockerfile=b"FROM scratch")
    tags = {tag for image in await images.list_images() for tag in image.tags if "/hyper/" in tag}
    assert tags == {BUILDER, "docker.io/hyper/builders:0"}


async def test_an_archive_that_brings_another_image_is_no_builders(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    images = shop.world.images
    del images.images[image_named(BUILDER).image_id]
    monkeypatch.setattr("tests.fakes.image._names_in", lambda _: ["docker.io/hyper/builder:other"])
    with pytest.raises(UnavailableError, match="is not the image"):
        await shop.build(dockerfile=b"FROM scratch")
    shop.require_nothing_left()


async def test_those_count_who_are_still_being_told_that_they_wait(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hyperd.build.service.MAX_WAITING", 1)
    shop.script("buildah", None)
    told = asyncio.Event()

    async def hear_nothing(event: Event) -> None:
        if isinstance(event, PullNotice):
            told.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(shop, "hear", hear_nothing)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(lambda: shop.running("buildah"))
        second = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await told.wait()
        third = tasks.create_task(_outcome(shop.build(dockerfile=b"FROM scratch")))
        await eventually(third.done)
        assert isinstance(third.result(), ExhaustedError)
        second.cancel()
        first.cancel()
    shop.require_nothing_left()


async def test_a_request_that_the_registry_finds_invalid_ends_the_build(shop: Shop):
    shop.world.images.fail_next_pull = InvalidError("these credentials make no sense")
    with pytest.raises(InvalidError, match="credentials"):
        await shop.build(dockerfile=b"FROM far.example/base")
    shop.require_nothing_left()


@pytest.mark.parametrize("name", ["docker-archive:/root/x.tar", "oci:/root/x", "docker-daemon:alpine"])
async def test_what_lies_on_the_host_is_no_base(shop: Shop, name: str):
    shop.script("buildah", ProcessExit(125), b"no such image")
    assert await shop.build(dockerfile=f"FROM {name}".encode()) == BuildFailed(125)
    assert not shop.world.images.pulls


@pytest.mark.parametrize("tag", ["NOT/A:NAME:", "", "hyper/builder:1", "a@sha256:" + "0" * 64])
async def test_a_tag_that_cannot_be_given_starts_nothing(shop: Shop, tag: str):
    with pytest.raises(InvalidError):
        await shop.build(tags=(tag,))
    assert not shop.world.hypervisor.definitions


async def test_of_many_bases_none_is_handed_over_twice(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    bases = [shop.world.images.publish(f"far.example/base{number}") for number in range(60)]
    shop.script("sh", DONE, "\n".join(image.image_id[7:] for image in bases).encode())
    handed: list[str] = []
    monkeypatch.setattr(shop.world.images, "save", handed.append)
    text = "FROM far.example/base0\n" + "".join(f"COPY --from={each.tags[0]} / /\n" for each in bases)
    await shop.build(dockerfile=text.encode())
    assert not handed


async def _outcome(work: Awaitable[Built | BuildFailed]) -> Built | BuildFailed | HyperError:
    try:
        return await work
    except HyperError as error:
        return error
