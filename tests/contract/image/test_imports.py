# SPDX-License-Identifier: Apache-2.0
"""Root file systems that become images."""

import gzip

import pytest

from hyperd.errors import (
    InvalidError,
)
from hyperd.model.image import NewImage, Platform
from tests import images
from tests.contract.image.test_archives import COMPRESSORS, SMALL
from tests.contract.image.test_commit import all_files, pieces
from tests.mounts import names_in
from tests.trees import tree_of


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_a_root_file_system_becomes_an_image(store, tmp_path, compression):
    tar = images.layer_tar(SMALL[0])
    new = NewImage("root:1", changes=('CMD ["sh"]',), author="me", platform=Platform("linux", "arm64", "v8"))
    image = await store.import_root(pieces(COMPRESSORS[compression](tar), 700), new)
    assert image.diff_ids == (images.digest_of(tar),)
    assert (image.tags, image.config.cmd, str(image.platform)) == (
        ("docker.io/library/root:1",),
        ("sh",),
        "linux/arm64/v8",
    )
    assert [(entry.comment, entry.empty_layer) for entry in image.history] == [("Imported from -", False)]
    tree = await tree_of([store._layers.path(image.diff_ids[0])], tmp_path / "mnt")
    assert tree["etc/motd"]["data"] == images.digest_of(b"hi\n")[7:]
    assert names_in(store._temporary) == []


@pytest.mark.parametrize(
    "data", [b"", b"x" * 600, gzip.compress(b"x" * 600), gzip.compress(bytes(1024))[:-9]]
)
async def test_an_import_of_no_tar_leaves_nothing(store, data):
    with pytest.raises(InvalidError):
        await store.import_root(pieces(data), NewImage("root:1"))
    assert all_files(store) == set()
    assert await store.list_images() == []
