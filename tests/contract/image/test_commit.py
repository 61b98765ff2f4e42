# SPDX-License-Identifier: Apache-2.0
"""Commits: a layer that streams in, on an image that was pulled."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    ImageNotFoundError,
    InvalidError,
    TimeoutExpiredError,
    UnsupportedError,
)
from hyperd.host import process
from hyperd.image import OciImageStore
from hyperd.image.superblock import stamp
from hyperd.model.image import Digest, Image, ImageId, NewImage
from tests import images
from tests.contract.image.conftest import opened
from tests.images import directory, file, opaque, whiteout
from tests.mounts import names_in, small_filesystem
from tests.trees import tree_of

CHANGED = [
    directory("srv"),
    file("srv/new", b"made\n"),
    whiteout("etc/mtab"),
    directory("home"),
    opaque("home"),
]


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def pulled(store, hub, built=None) -> Image:
    name = await hub.push(built or images.busybox_image(), "busybox:1")
    events = [event async for event in store.pull(name)]
    assert isinstance(events[-1], Image)
    return events[-1]


_SKOPEO_LEARNT = "blob-info-cache-v1.boltdb"


def all_files(store: OciImageStore) -> set[str]:
    """Of images; what skopeo has learnt of repositories stays."""
    root = store._root
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("index.json", "policy.json", "oci-layout", _SKOPEO_LEARNT)
    }


def raw(store, digest) -> Any:
    return json.loads(store._content.read(Digest(digest), limit=1 << 20))


async def test_a_commit_is_the_base_and_one_layer(hub, store, tmp_path):
    base = await pulled(store, hub)
    tar = images.layer_tar(CHANGED)
    new = NewImage(
        "app:2", author="me", message="more", changes=('CMD ["x"]', "ENV A=1"), created_by="sh -c make"
    )
    image = await store.commit(base.image_id, pieces(tar), new)
    assert image.tags == ("docker.io/library/app:2",)
    assert image.diff_ids == (*base.diff_ids, images.digest_of(tar))
    assert image.size_bytes == base.size_bytes + len(tar)
    assert (image.author, image.config.cmd, image.config.env[-1]) == ("me", ("x",), "A=1")
    assert len(image.history) == len(base.history) + 1
    last = image.history[-1]
    assert (last.created_by, last.comment, last.empty_layer) == ("sh -c make", "more", False)
    assert last.created_at == image.created_at
    assert await store.get("app:2") == image
    disk = await store.root_disk(image.image_id)
    assert disk.layers == len(image.diff_ids)
    tree = await tree_of([store._layers.path(each) for each in image.diff_ids], tmp_path / "mnt")
    assert tree["srv/new"]["data"] == images.digest_of(b"made\n")[7:]
    assert "etc/mtab" not in tree
    assert not any(path.startswith("home/") for path in tree)
    assert names_in(store._temporary) == []


async def test_the_disk_is_the_one_that_a_pull_of_the_layer_makes(hub, store, tmp_path):
    base = await pulled(store, hub)
    tar = images.layer_tar([*images.usage_entries(), file("big", os.urandom(3 << 20))])
    image = await store.commit(base.image_id, pieces(tar), NewImage())
    made = store._layers.path(image.diff_ids[-1])
    streamed = made.read_bytes()
    made.unlink()
    (tmp_path / "tar").write_bytes(tar)
    await store._layers.convert(image.diff_ids[-1], tmp_path / "tar", lambda _: None)
    assert made.read_bytes() == streamed
    assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o644, 0)


async def test_the_same_bytes_make_the_same_layer_however_they_are_cut(hub, store):
    base = await pulled(store, hub)
    tar = images.layer_tar([file("a", b"some text " * 400_000), file("b", os.urandom(1 << 20))])
    manifests = []
    for size in (1000, 1 << 20, len(tar)):
        image = await store.commit(base.image_id, pieces(tar, size), NewImage())
        manifests.append(raw(store, image.manifest_digest)["layers"])
    assert manifests[0] == manifests[1] == manifests[2]
    top = manifests[0][-1]
    assert top["size"] == store._content.size(top["digest"])
    assert store._content.is_intact(top["digest"])


async def test_a_commit_of_nothing_has_a_layer_of_nothing(hub, store):
    base = await pulled(store, hub)
    image = await store.commit(base.image_id, pieces(bytes(1024)), NewImage())
    assert len(image.diff_ids) == len(base.diff_ids) + 1
    assert (await store.root_disk(image.image_id)).layers == len(image.diff_ids)


@pytest.mark.parametrize("kind", ["oci", "docker"])
async def test_a_commit_is_of_its_bases_family_and_keeps_unknown_fields(hub, store, kind):
    config = {"Cmd": ["sh"], "Strange": {"deep": [1, 2.5]}}
    built = images.build([[directory("etc"), file("etc/mtab")]], docker=kind == "docker", config=config)
    base = await pulled(store, hub, built)
    image = await store.commit(base.image_id, pieces(images.layer_tar(CHANGED)), NewImage("app"))
    before, after = raw(store, base.manifest_digest), raw(store, image.manifest_digest)
    assert after["layers"][:-1] == before["layers"]
    assert (after["mediaType"], after["config"]["mediaType"]) == (
        before["mediaType"],
        before["config"]["mediaType"],
    )
    assert (
        after["layers"][-1]["mediaType"]
        == {
            "oci": "application/vnd.oci.image.layer.v1.tar+gzip",
            "docker": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }[kind]
    )
    assert raw(store, image.image_id)["config"]["Strange"] == {"deep": [1, 2.5]}


async def test_a_tag_moves_and_a_commit_of_a_commit_works(hub, store):
    base = await pulled(store, hub)
    first = await store.commit(base.image_id, pieces(images.layer_tar(CHANGED)), NewImage("app"))
    more = images.layer_tar([file("more", b"2")])
    second = await store.commit(first.image_id, pieces(more), NewImage("app"))
    assert (await store.get(first.image_id)).tags == ()
    assert (await store.get("app")).image_id == second.image_id
    assert second.diff_ids[:-1] == first.diff_ids


async def cut_short() -> AsyncIterator[bytes]:
    yield images.layer_tar([file("a", bytes(3 << 20))])[: 2 << 20]
    raise HyperError("the guest has gone")


TAR = images.layer_tar([file("a", b"x" * 10_000)])


@pytest.mark.parametrize(
    ("data", "new", "kind", "match"),
    [
        (pieces(b""), NewImage(), InvalidError, "no bytes at all"),
        (pieces(b"rubbish " * 1000), NewImage(), InvalidError, "not a tar"),
        (pieces(TAR[:4000]), NewImage(), InvalidError, "not a tar"),
        (cut_short(), NewImage(), HyperError, "the guest has gone"),
        (pieces(TAR), NewImage(changes=("ENTRYPOINT",)), InvalidError, "says nothing"),
        (pieces(TAR), NewImage(changes=("ONBUILD RUN x",)), UnsupportedError, "ONBUILD"),
        (pieces(TAR), NewImage("UPPER"), InvalidError, "lower case"),
        (pieces(TAR), NewImage("a@sha256:" + "0" * 64), InvalidError, "digest"),
    ],
    ids=["empty", "rubbish", "truncated", "broken off", "change", "onbuild", "name", "digest"],
)
async def test_a_commit_that_fails_leaves_nothing(hub, store, data, new, kind, match):
    base = await pulled(store, hub)
    before = all_files(store)
    with pytest.raises(kind) as caught:
        await store.commit(base.image_id, data, new)
    assert match in f"{caught.value} {caught.value.evidence}"
    assert all_files(store) == before
    assert [image.image_id for image in await store.list_images()] == [base.image_id]


async def test_a_commit_that_is_cancelled_leaves_nothing(hub, store):
    base = await pulled(store, hub)
    before = all_files(store)
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield images.layer_tar([file("a", os.urandom(4 << 20))])[: 3 << 20]
        waiting.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(store.commit(base.image_id, endless(), NewImage("app")))
    await waiting.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert all_files(store) == before
    assert not store._garbage._pins


async def test_a_failure_at_the_last_step_leaves_nothing(hub, store):
    base = await pulled(store, hub)
    before = all_files(store)

    def refuse(connection) -> None:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON image BEGIN SELECT RAISE(FAIL, 'no'); END")

    await store._database.transaction(refuse)
    with pytest.raises(HyperError):
        await store.commit(base.image_id, pieces(images.layer_tar(CHANGED)), NewImage("app"))
    assert all_files(store) == before
    assert not store._garbage._pins


async def test_a_base_that_goes_away_meanwhile_stays_for_the_commit(hub, store):
    base = await pulled(store, hub)
    tar = images.layer_tar(CHANGED)

    async def slowly() -> AsyncIterator[bytes]:
        yield tar[:1024]
        await store.remove(base.image_id, force=True)
        yield tar[1024:]

    image = await store.commit(base.image_id, slowly(), NewImage("app"))
    assert [each.image_id for each in await store.list_images()] == [image.image_id]
    assert (await store.root_disk(image.image_id)).layers == len(image.diff_ids)
    assert image.size_bytes == base.size_bytes + len(tar)
    await store.remove("app")
    assert not any(name.startswith("layers/") for name in all_files(store) if "5f70bf18" not in name)


async def test_an_unknown_base_is_refused(store):
    with pytest.raises(ImageNotFoundError):
        await store.commit(ImageId("sha256:" + "1" * 64), pieces(TAR), NewImage())


async def test_a_sender_that_sends_nothing_is_given_up(hub, tmp_path):
    async with opened(tmp_path / "images") as store:
        base = await pulled(store, hub)
    async with opened(tmp_path / "images", stall_timeout_s=0.05) as store:
        before = all_files(store)

        async def silent() -> AsyncIterator[bytes]:
            yield TAR[:512]
            await asyncio.Event().wait()

        with pytest.raises(TimeoutExpiredError):
            await store.commit(base.image_id, silent(), NewImage())
        assert all_files(store) == before


async def test_a_layer_without_end_is_bounded(hub, tmp_path):
    async with opened(tmp_path / "small", max_layer_bytes=40 << 20) as store:
        base = await pulled(store, hub)
        before = all_files(store)
        block = images.layer_tar([file("a", bytes(1 << 20))])[: 512 + (1 << 20)]

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield block

        with pytest.raises(ExhaustedError, match="larger than 40 MiB"):
            await store.commit(base.image_id, endless(), NewImage())
        assert all_files(store) == before


async def test_a_full_disk_ends_a_commit(hub, tmp_path):
    async with (
        small_filesystem(tmp_path / "full", size_mib=40) as mounted,
        opened(mounted / "images", reserve_bytes=1 << 20) as store,
    ):
        base = await pulled(store, hub)
        before = all_files(store)
        tar = images.layer_tar([file("a", os.urandom(60 << 20))])
        with pytest.raises(ExhaustedError):
            await store.commit(base.image_id, pieces(tar), NewImage())
        assert all_files(store) == before


async def test_a_stamp_needs_a_superblock(tmp_path):
    (tmp_path / "none").write_bytes(bytes(8192))
    with (tmp_path / "none").open("r+b") as none, pytest.raises(HyperError, match="superblock"):
        stamp(none.fileno(), "5b5d6ec7-2f1c-5c8a-9d52-1d0b3f3a3c11")


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from hyperd.model.image import NewImage
from tests import images
from tests.contract.image.conftest import opened

async def main():
    async def data():
        yield images.layer_tar([images.file("a", os.urandom(4 << 20))])[: 3 << 20]
        assert list((Path(sys.argv[1]) / "tmp").glob("intake-*"))
        os.kill(os.getpid(), signal.SIGKILL)
    async with opened(Path(sys.argv[1])) as store:
        await store.import_root(data(), NewImage("app"))

asyncio.run(main())
"""


async def test_a_daemon_that_is_killed_in_the_middle_leaves_nothing_to_the_next(tmp_path):
    root = tmp_path / "images"
    argv = [sys.executable, "-c", KILLED, str(root)]
    finished = await process.run(
        argv, timeout_s=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert finished.returncode == -9, finished.stderr_tail
    assert names_in(root / "tmp") != []
    async with opened(root) as store:
        assert all_files(store) == set()
        assert names_in(root / "tmp") == []
        assert await store.list_images() == []


async def test_senders_that_wait_keep_nobody_else_out(hub, store):
    base = await pulled(store, hub)
    waiting = asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        yield images.layer_tar(CHANGED)[:512]
        waiting.release()
        await asyncio.Event().wait()

    senders = [asyncio.create_task(store.import_root(slow(), NewImage(""))) for _ in range(8)]
    try:
        async with asyncio.timeout(60):
            for _ in senders:
                await waiting.acquire()
            await store.commit(base.image_id, pieces(images.layer_tar(CHANGED)), NewImage("app:2"))
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.wait(senders)
    assert names_in(store._temporary) == []
