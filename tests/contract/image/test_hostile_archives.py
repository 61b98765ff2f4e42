# SPDX-License-Identifier: Apache-2.0
"""What a hostile archive of images does: nothing. Nor does one that never ends."""

import asyncio
import gzip
import json
import lzma
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from hyperd.errors import (
    ExhaustedError,
    InvalidError,
    TimeoutExpiredError,
    UnsupportedError,
)
from hyperd.image import loading
from hyperd.model.image import NewImage
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_archives import SMALL, load
from tests.contract.image.test_commit import all_files, pieces
from tests.images import Entry, file, hardlink, symlink
from tests.mounts import names_in


def described(config: str, layers: Sequence[str], *more: Entry) -> bytes:
    manifest = [{"Config": config, "RepoTags": ["evil:1"], "Layers": list(layers)}]
    return images.layer_tar([file("manifest.json", json.dumps(manifest)), *more])


GOOD = images.build(SMALL, compression="none")
CONFIG, LAYERS = file("c.json", GOOD.config), [file("a", GOOD.layers[0]), file("b", GOOD.layers[1])]


def layout_without(built: images.BuiltImage, missing: str) -> bytes:
    files = images._layout_files(built, "evil:1")
    return images.layer_tar([file(path, data) for path, data in files.items() if missing not in path])


def layout_with(change: dict[str, bytes]) -> bytes:
    found = images._layout_files(GOOD, "evil:1") | change
    return images.layer_tar([file(path, data) for path, data in found.items()])


HOSTILE = {
    "empty": b"",
    "no archive": b"nothing of the kind " * 500,
    "an empty tar": bytes(1024),
    "a root file system": images.layer_tar(SMALL[0]),
    "absolute": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("/evil", b"x")),
    "upwards": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("../evil", b"x")),
    "upwards inside": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("x/../../evil", b"x")),
    "link out": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "/etc/passwd")),
    "link upwards": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "../../etc/passwd")),
    "hard link out": described("c.json", ["a", "b"], CONFIG, LAYERS[0], hardlink("b", "/etc/passwd")),
    "link to itself": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "b")),
    "config outside": described("/etc/passwd", ["a", "b"], CONFIG, *LAYERS),
    "config upwards": described("../../../etc/passwd", ["a", "b"], CONFIG, *LAYERS),
    "layer outside": described("c.json", ["a", "/etc/passwd"], CONFIG, *LAYERS),
    "layer missing": described("c.json", ["a", "c"], CONFIG, *LAYERS),
    "layer too few": described("c.json", ["a"], CONFIG, *LAYERS),
    "layer is another": described("c.json", ["b", "a"], CONFIG, *LAYERS),
    "config is no config": described("a", ["a", "b"], *LAYERS),
    "truncated": described("c.json", ["a", "b"], CONFIG, *LAYERS)[:9000],
    "truncated gzip": gzip.compress(described("c.json", ["a", "b"], CONFIG, *LAYERS))[:-50],
    "rubbish xz": lzma.compress(bytes(1024))[:30] + b"x" * 100,
    "manifest.json is an object": images.layer_tar([file("manifest.json", "{}")]),
    "manifest.json is deep": images.layer_tar([file("manifest.json", "[" * 100_000)]),
    "manifest.json of numbers": images.layer_tar([file("manifest.json", "[1]")]),
    "no images": images.layer_tar([file("manifest.json", "[]")]),
    "index without manifests": images.layer_tar([file("index.json", "{}"), file("oci-layout", "{}")]),
    "blob missing": layout_without(GOOD, GOOD.layer_digests[0][7:]),
    "config missing": layout_without(GOOD, GOOD.image_id[7:]),
    "manifest missing": layout_without(GOOD, GOOD.manifest_digest[7:]),
    "blob is another": layout_with({f"blobs/sha256/{GOOD.layer_digests[0][7:]}": GOOD.layers[1]}),
    "config is another": layout_with({f"blobs/sha256/{GOOD.image_id[7:]}": GOOD.config + b" "}),
    "digest is a path": layout_with(
        {
            "index.json": b'{"manifests": [{"mediaType": "%s", "digest": "sha256:../../x"}]}'
            % images.OCI_MANIFEST.encode()
        }
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_archive_is_refused_and_leaves_nothing(store, tmp_path, case):
    before, around = all_files(store), sorted(tmp_path.iterdir())
    with pytest.raises(InvalidError):
        await load(store, HOSTILE[case])
    assert all_files(store) == before
    assert names_in(store._temporary) == []
    assert sorted(tmp_path.iterdir()) == around
    assert not Path("/evil").exists()
    assert await store.list_images() == []


async def test_an_archive_of_very_old_docker_is_named(store):
    with pytest.raises(UnsupportedError, match=r"before 1\.10"):
        await load(store, images.layer_tar([file("repositories", "{}")]))


async def test_a_bomb_ends_at_the_limit(tmp_path):
    bomb = gzip.compress(images.layer_tar([file("a", bytes(80 << 20))]))
    async with opened(tmp_path / "small", max_layer_bytes=50 << 20) as store:
        with pytest.raises(ExhaustedError, match="larger than 50 MiB"):
            await load(store, bomb)
        with pytest.raises(ExhaustedError, match="larger than 50 MiB"):
            await store.import_root(pieces(bomb), NewImage())
        assert names_in(store._temporary) == []


async def test_too_many_members_are_refused(store):
    with pytest.raises(InvalidError, match="more than"):
        await load(store, images.layer_tar([file("same")] * 20_001))


async def test_a_load_that_is_cancelled_leaves_nothing(store):
    data, waiting = described("c.json", ["a", "b"], CONFIG, *LAYERS), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield data[:4000]
        waiting.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(load(store, endless()))
    await waiting.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert all_files(store) == set()
    assert names_in(store._temporary) == []


async def test_a_load_without_end_gives_its_place_back(store, monkeypatch):
    monkeypatch.setattr(loading, "INTAKE_TIMEOUT_S", 0.05)
    data = described("c.json", ["a", "b"], CONFIG, *LAYERS)

    async def endless() -> AsyncIterator[bytes]:
        yield data[:4000]
        await asyncio.Event().wait()

    for _ in range(loading.PARALLEL + 1):
        with pytest.raises(TimeoutExpiredError, match="no image after"):
            await load(store, endless())
    assert names_in(store._temporary) == []
