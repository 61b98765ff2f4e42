# SPDX-License-Identifier: Apache-2.0
"""Pushing through the real skopeo to a real registry: bytes stay what they are, and only what is missing is sent."""

import contextlib
import json
import stat
from pathlib import Path

import pytest

from hyperd.errors import DeniedError, ImageNotFoundError, InvalidError, NotFoundError, UnavailableError
from hyperd.host import process
from hyperd.image import PullEvent
from hyperd.model.image import (
    Credentials,
    Digest,
    Image,
    PullNotice,
    PushedTag,
    PushPhase,
    PushProgress,
)
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_shared_pulls import script
from tests.images import file
from tests.mounts import names_in
from tests.registry import PASSWORD, USER, registry

SMALL = [[file("a", "one" * 1000)], [file("b", "two" * 1000)]]
LOGIN = Credentials(USER, PASSWORD)


async def pulled(store, reference, **options) -> Image:
    events: list[PullEvent] = [event async for event in store.pull(reference, **options)]
    assert isinstance(events[-1], Image)
    return events[-1]


async def pushed(store, reference, **options) -> tuple[list[PushedTag], dict[str, PushPhase], list[str]]:
    events = [event async for event in store.push(reference, **options)]
    return (
        [event for event in events if isinstance(event, PushedTag)],
        {event.digest: event.phase for event in events if isinstance(event, PushProgress)},
        [event.text for event in events if isinstance(event, PullNotice)],
    )


async def fetched(reference) -> bytes:
    """What the registry serves under a name."""
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    return (await process.run_checked(argv, timeout_s=20)).stdout


@pytest.mark.parametrize(
    ("docker", "compression"),
    [(False, "gzip"), (False, "zstd"), (False, "none"), (True, "gzip"), (True, "none")],
)
async def test_a_pushed_image_is_what_was_pulled_byte_for_byte(hub, store, tmp_path, docker, compression):
    built = images.build(SMALL, docker=docker, compression=compression)
    await pulled(store, await hub.push(built, "source:1"))
    async with registry(tmp_path / "other") as other:
        name = await store.tag(built.image_id, f"{other.address}/team/app:2")
        [tag], phases, notices = await pushed(store, name)
        assert tag == PushedTag(name, Digest(built.manifest_digest), len(built.manifest))
        assert phases == dict.fromkeys(built.layer_digests, PushPhase.DONE)
        assert notices == [f"The push refers to repository [{other.address}/team/app]"]
        assert await fetched(name) == built.manifest
        async with opened(tmp_path / "second") as second:
            again = await pulled(second, name)
        assert (again.image_id, again.manifest_digest) == (built.image_id, built.manifest_digest)
    assert f"{other.address}/team/app@{built.manifest_digest}" in (await store.get(name)).digests
    assert names_in(store._temporary) == []


async def test_what_is_there_is_not_sent_and_what_a_neighbour_has_is_mounted(hub, store):
    built = images.build(SMALL)
    await pulled(store, await hub.push(built, "source:1"))
    neighbour = await store.tag(built.image_id, f"{hub.address}/neighbour:1")
    phases = [(await pushed(store, neighbour))[1] for _ in range(2)]
    assert phases == [
        dict.fromkeys(built.layer_digests, PushPhase.MOUNTED),  # it was pulled from that registry
        dict.fromkeys(built.layer_digests, PushPhase.EXISTS),
    ]


async def test_of_an_index_the_one_manifest_is_pushed_that_is_here_and_said(hub, store):
    mine = images.build(SMALL)
    other = images.build([[file("a", "arm")]], architecture="arm64")
    index = images.index(
        [(other, {"os": "linux", "architecture": "arm64"}), (mine, {"os": "linux", "architecture": "amd64"})]
    )
    await pulled(store, await hub.push(index, "multi:1"))
    name = await store.tag(mine.image_id, f"{hub.address}/single:1")
    [tag], _, notices = await pushed(store, name)
    assert tag.manifest_digest == mine.manifest_digest
    assert "only linux/amd64 is here" in notices[1]
    assert await fetched(name) == mine.manifest


async def test_an_image_in_two_compressions_is_not_one_of_several_platforms(hub, store):
    gzip, zstd = images.build(SMALL), images.build(SMALL, compression="zstd")
    await pulled(store, await hub.push(gzip, "x:gzip"))
    name = await hub.push(zstd, "x:zstd")
    await pulled(store, name)
    _, _, notices = await pushed(store, name)
    assert not any("platforms" in notice for notice in notices)


async def test_all_tags_of_a_repository_are_pushed_and_pulled(hub, store, tmp_path):
    first, second = images.build(SMALL), images.build([SMALL[0]])
    for built, tag in ((first, "1"), (first, "latest"), (second, "2")):
        await pulled(store, await hub.push(built, f"source:{tag}"))
        await store.tag(f"{hub.address}/source:{tag}", f"{hub.address}/many:{tag}")
    tags, _, _ = await pushed(store, f"{hub.address}/many", all_tags=True)
    assert [tag.reference.rpartition(":")[2] for tag in tags] == ["1", "2", "latest"]
    async with opened(tmp_path / "second") as empty:
        events = [event async for event in empty.pull(f"{hub.address}/many", all_tags=True)]
        found = {tag for image in await empty.list_images() for tag in image.tags}
        assert found == {f"{hub.address}/many:{tag}" for tag in ("1", "2", "latest")}
        assert sum(isinstance(event, Image) for event in events) == 3
    for call in (store.push, store.pull):
        with pytest.raises(InvalidError, match="none can be named"):
            _ = [event async for event in call(f"{hub.address}/many:1", all_tags=True)]


async def test_what_cannot_be_pushed_is_a_clear_error(hub, store):
    built = images.build(SMALL)
    name = await hub.push(built, "small:1")
    image = await pulled(store, name)
    for reference, kind in [
        ("unknown:1", ImageNotFoundError),
        (f"{hub.address}/unknown", ImageNotFoundError),
        (f"{hub.address}/small@{built.manifest_digest}", InvalidError),
        (image.image_id[7:], InvalidError),
        ("docker-archive:/tmp/x", InvalidError),
        (await store.tag(name, "127.0.0.1:1/small:1"), UnavailableError),
    ]:
        with pytest.raises(kind) as caught:
            await pushed(store, reference)
        assert "level=" not in str(caught.value)
    assert names_in(store._temporary) == []
    assert await fetched(name) == built.manifest


@pytest.mark.parametrize("damage", [lambda data: b"x" + data[1:], lambda data: data[:-1], None])
async def test_a_damaged_blob_is_not_pushed(hub, store, damage):
    built = images.build(SMALL)
    await pulled(store, await hub.push(built, "small:1"))
    name = await store.tag(built.image_id, f"{hub.address}/damaged:1")
    blob = store._content.path(built.layer_digests[0])
    hub.blob_path(built.layer_digests[0]).unlink()
    if damage is None:
        blob.unlink()
    else:
        blob.write_bytes(damage(blob.read_bytes()))
    with pytest.raises(UnavailableError, match="hyper pull"):
        await pushed(store, name)
    with pytest.raises(NotFoundError):
        await pulled(store, name)


async def test_credentials_reach_the_registry_in_a_private_file_and_nowhere_else(tmp_path):
    watched = f"""
    {{ env; echo "$*"; }} >> {tmp_path}/seen
    for word; do case "$word" in --authfile=*) stat -c %a "${{word#*=}}" >> {tmp_path}/modes; esac; done"""
    async with (
        registry(tmp_path / "locked", locked=True) as hub,
        opened(tmp_path / "images", skopeo=script(tmp_path, watched)) as store,
    ):
        images.write_layout(images.build(SMALL), tmp_path / "layout", name := f"{hub.address}/private:1")
        await pulled(store, f"oci:{tmp_path}/layout:{name}")
        with pytest.raises(DeniedError, match="does not take the image"):
            await pushed(store, name)
        with pytest.raises(DeniedError):
            await pushed(store, name, credentials=Credentials(USER, "wrong"))
        [tag], _, _ = await pushed(store, name, credentials=LOGIN)
        await store.remove(name)
        with pytest.raises(DeniedError):
            await pulled(store, name)
        assert (await pulled(store, name, credentials=LOGIN)).manifest_digest == tag.manifest_digest
        assert (await store.manifest(name, credentials=LOGIN)).digest == tag.manifest_digest
        assert (
            len(
                [
                    e
                    async for e in store.pull(name[:-2], all_tags=True, credentials=LOGIN)
                    if isinstance(e, Image)
                ]
            )
            == 1
        )
        assert names_in(store._temporary) == []
    assert PASSWORD not in (tmp_path / "seen").read_text()
    assert set((tmp_path / "modes").read_text().split()) == {"600"}


async def test_a_login_of_the_daemon_for_another_registry_is_not_lost(tmp_path):
    async with registry(tmp_path / "locked", locked=True) as hub:
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {hub.address: {"auth": "aHlwZXI6c2VjcmV0"}}}))
        async with opened(tmp_path / "images", authfile=auth) as store:
            for credentials in (None, Credentials()):
                with pytest.raises(NotFoundError):  # let in, and nothing there
                    await store.manifest(f"{hub.address}/private:1", credentials=credentials)
            async with store._exchange._logins.lent(LOGIN, "example.org") as lent:
                assert lent is not None
                body = json.loads(lent.read_text())
                assert stat.S_IMODE(lent.stat().st_mode) == 0o600
            assert set(body["auths"]) == {hub.address, "example.org"}
            assert names_in(store._temporary) == []


@pytest.mark.parametrize(
    "built",
    [
        images.build(SMALL),
        images.build(SMALL, docker=True),
        images.index([(images.build(SMALL), {"os": "linux", "architecture": "amd64"})]),
    ],
)
async def test_a_manifest_is_told_as_the_registry_serves_it(hub, store, built):
    name = await hub.push(built, "raw:1")
    raw = await store.manifest(name)
    assert (raw.content, raw.media_type, raw.digest) == (
        built.manifest,
        built.media_type,
        built.manifest_digest,
    )
    with pytest.raises(NotFoundError):
        await store.manifest(f"{hub.address}/raw:none")
    assert await store.list_images() == []


async def test_a_tag_moves_and_leaves_the_other_image_dangling(hub, store):
    one, two = images.build([SMALL[0]]), images.build([SMALL[1]])
    for built, name in ((one, "one:1"), (two, "two:1")):
        await pulled(store, await hub.push(built, name))
    assert await store.tag(f"{hub.address}/one:1", "app") == "docker.io/library/app:latest"
    assert await store.tag(two.image_id[7:19], "app:latest") == "docker.io/library/app:latest"
    assert (await store.get("app")).image_id == two.image_id
    assert await store.tag(two.image_id, f"{hub.address}/one:1") == f"{hub.address}/one:1"
    assert (await store.get(one.image_id)).tags == ()
    for bad in (f"app@{one.manifest_digest}", "oci:/x", "docker-archive:/x", "UPPER", "", one.image_id[7:]):
        with pytest.raises(InvalidError):
            await store.tag("app", bad)
    with pytest.raises(ImageNotFoundError):
        await store.tag("nothing", "app")
    listed = json.loads((Path(store._root) / "index.json").read_bytes())["manifests"]
    assert {entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in listed} == {
        None,
        "docker.io/library/app:latest",
        f"{hub.address}/one:1",
        f"{hub.address}/two:1",
    }


async def test_an_abandoned_push_leaves_no_child_and_nothing_half_made(hub, tmp_path):
    hang = f'case "$*" in *" --debug copy "*) echo $$ > {tmp_path}/pid; exec sleep 600; esac'
    built = images.build(SMALL)
    name = await hub.push(built, "slow:1")
    async with opened(tmp_path / "images") as store:
        await pulled(store, name)
    async with opened(tmp_path / "images", skopeo=script(tmp_path, hang), stall_timeout_s=0.3) as store:
        with pytest.raises(UnavailableError, match="has taken nothing for"):
            await pushed(store, name, credentials=LOGIN)
        pid = (tmp_path / "pid").read_text().strip()
        assert not Path(f"/proc/{pid}").exists()
        assert names_in(store._temporary) == []
        async with contextlib.aclosing(store.push(name, credentials=LOGIN)) as events:
            async for event in events:
                if isinstance(event, PushProgress):
                    break
        assert names_in(store._temporary) == []
