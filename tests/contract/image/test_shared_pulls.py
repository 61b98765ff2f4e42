# SPDX-License-Identifier: Apache-2.0
"""Several callers, impatient callers, killed daemons: what is done once, what ends, what stays."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from hyperd.errors import NotFoundError, UnavailableError
from hyperd.model.image import Digest, Image
from tests import images
from tests.contract.image.conftest import opened
from tests.images import file
from tests.mounts import names_in

BUILT = images.build([[file("a", "one" * 1000)], [file("b", "two" * 1000)]])


def script(tmp_path: Path, text: str) -> str:
    """A skopeo that notes how it is called, and then does as told."""
    path = tmp_path / "skopeo"
    path.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n{text}\nexec skopeo "$@"\n')
    path.chmod(0o755)
    return str(path)


def calls(tmp_path: Path, verb: str) -> int:
    path = tmp_path / "calls"
    return sum(f" {verb} " in line for line in path.read_text().splitlines()) if path.exists() else 0


# Begin to copy as skopeo does, say so, and hang.
HANGING_COPY = """
case "$*" in *" copy "*)
    for last; do :; done
    echo begun > "${last#oci:}/oci-put-blob1"
    echo $$ > "$(dirname "$0")/pid"
    exec sleep 600
esac
"""


async def pull(store, name, **options) -> Image:
    async with contextlib.aclosing(store.pull(name, **options)) as events:
        last = None
        async for event in events:
            last = event
    assert isinstance(last, Image)
    return last


async def wait_for(path: Path) -> str:
    async with asyncio.timeout(20):
        while not (path.is_file() and path.read_text().strip()):  # another process writes it
            await asyncio.sleep(0.01)
    return path.read_text().strip()  # a test


def is_alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_two_pulls_of_one_image_do_the_work_once(hub, tmp_path):
    name = await hub.push(BUILT, "shared:1")
    async with opened(tmp_path / "images", skopeo=script(tmp_path, "")) as store:
        async with asyncio.TaskGroup() as tasks:
            pulls = [tasks.create_task(pull(store, name)) for _ in range(5)]
        assert {task.result().image_id for task in pulls} == {BUILT.image_id}
        assert calls(tmp_path, "copy") == 1
        await pull(store, name)
        assert (calls(tmp_path, "copy"), calls(tmp_path, "inspect")) == (1, 3)


async def test_two_images_with_a_common_layer_convert_it_once(hub, store):
    other = images.build([[file("a", "one" * 1000)], [file("c")]])
    names = [await hub.push(BUILT, "one:1"), await hub.push(other, "other:1")]
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(pull(store, name))
    assert len(names_in(store._layers.root)) == 3


async def test_an_abandoned_pull_leaves_no_child_and_nothing_half_made(hub, tmp_path):
    name = await hub.push(BUILT, "slow:1")
    async with opened(tmp_path / "images", skopeo=script(tmp_path, HANGING_COPY)) as store:
        task = asyncio.create_task(pull(store, name))
        pid = await wait_for(tmp_path / "pid")
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert not is_alive(pid)
        assert names_in(store._temporary) == names_in(store._layers.root) == names_in(store._disks.root) == []
        assert await store.list_images() == []
    async with opened(tmp_path / "images") as store:
        assert (await pull(store, name)).image_id == BUILT.image_id


async def test_a_registry_that_stands_still_is_given_up(hub, tmp_path):
    name = await hub.push(BUILT, "still:1")
    skopeo = script(tmp_path, HANGING_COPY)
    async with opened(tmp_path / "images", skopeo=skopeo, stall_timeout_s=0.3) as store:
        with pytest.raises(UnavailableError, match="has sent nothing for"):
            await asyncio.wait_for(pull(store, name), 30)
        assert not is_alive(await wait_for(tmp_path / "pid"))
        assert names_in(store._temporary) == []


async def test_the_one_who_stays_gets_his_image(hub, tmp_path):
    name = await hub.push(BUILT, "stays:1")
    wait = f"echo $$ > {tmp_path}/pid; while ! [ -e {tmp_path}/go ]; do sleep 0.02; done"
    waiting = f'case "$*" in *" copy "*) {wait}; esac'
    async with opened(tmp_path / "images", skopeo=script(tmp_path, waiting)) as store:
        goes, stays = (asyncio.create_task(pull(store, name)) for _ in range(2))
        pid = await wait_for(tmp_path / "pid")
        goes.cancel()
        await asyncio.wait({goes})
        assert is_alive(pid)
        (tmp_path / "go").touch()
        assert (await asyncio.wait_for(stays, 20)).image_id == BUILT.image_id
        assert calls(tmp_path, "copy") == 1


async def test_closing_the_store_ends_the_pulls(hub, tmp_path):
    name = await hub.push(BUILT, "closing:1")
    async with opened(tmp_path / "images", skopeo=script(tmp_path, HANGING_COPY)) as store:
        task = asyncio.create_task(pull(store, name))
        pid = await wait_for(tmp_path / "pid")
    assert not is_alive(pid)
    await asyncio.wait({task})
    assert "stopping" in str(task.exception())


async def test_whole_blobs_are_not_fetched_again(hub, tmp_path):
    name = await hub.push(BUILT, "resumed:1")
    async with opened(tmp_path / "images") as store:
        missing = hub.blob_path(BUILT.layer_digests[1])
        data = missing.read_bytes()
        missing.unlink()
        with pytest.raises(NotFoundError):
            await pull(store, name)
        assert store._content.has(Digest(BUILT.layer_digests[0]))
        hub.blob_path(BUILT.layer_digests[0]).unlink()  # so that fetching it again would fail
        missing.write_bytes(data)
        assert (await pull(store, name)).image_id == BUILT.image_id


async def test_what_a_killed_daemon_left_is_removed_and_what_was_whole_stays(hub, tmp_path):
    name = await hub.push(BUILT, "killed:1")
    root = tmp_path / "images"
    async with opened(root) as store:
        image = await pull(store, name)
    (root / "tmp" / "pull-dead").mkdir()
    (root / "tmp" / "pull-dead" / "oci-put-blob1").write_bytes(b"half")
    (root / "tmp" / "layer-dead").write_bytes(b"half")
    old = root / "layers" / f"{'0' * 64}.erofs"
    old.write_bytes(b"nobody's")
    os.utime(old, (0, 0))
    async with opened(root) as store:
        assert names_in(root / "tmp") == []
        assert not old.exists()
        assert await store.get(name) == image
        assert (await store.root_disk(image.image_id)).layers == 2


async def test_removing_deletes_what_nobody_else_needs(hub, store):
    other = images.build([[file("a", "one" * 1000)], [file("c")]])
    kept = await pull(store, await hub.push(BUILT, "kept:1"))
    gone = await pull(store, await hub.push(other, "gone:1"))
    disk = await store.root_disk(gone.image_id)
    removal = await store.remove(gone.tags[0])
    assert removal.deleted == (gone.image_id, gone.diff_ids[1])
    assert names_in(store._layers.root) == sorted(f"{diff_id[7:]}.erofs" for diff_id in kept.diff_ids)
    assert names_in(store._disks.root) == [kept.image_id[7:]]
    blobs = {f"sha256:{name}" for name in names_in(store._content.shared_blob_dir / "sha256")}
    assert blobs == {*BUILT.blobs, BUILT.manifest_digest}
    with pytest.raises(NotFoundError):
        await store.root_disk(gone.image_id)
    assert not disk.path.exists()


async def test_pulling_and_removing_at_once_never_breaks_an_image(hub, store):
    """Both images share a layer; one is removed and pulled again and again while the other is pulled."""
    other = images.build([[file("a", "one" * 1000)], [file("c")]])
    names = [await hub.push(BUILT, "one:1"), await hub.push(other, "two:1")]

    async def churn(name, delay):
        for _ in range(3):
            await asyncio.sleep(delay)
            image = await pull(store, name)
            assert (await store.root_disk(image.image_id)).layers == 2
            await store.remove(name)
        return await pull(store, name)

    async with asyncio.TaskGroup() as tasks:
        done = [tasks.create_task(churn(name, delay)) for name, delay in zip(names, (0, 0.03), strict=True)]
    for task in done:
        image = task.result()
        assert all(store._layers.has(diff_id) for diff_id in image.diff_ids)
        assert (await store.root_disk(image.image_id)).path.is_file()
    assert await store.list_images() != []
