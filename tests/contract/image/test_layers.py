# SPDX-License-Identifier: Apache-2.0
"""What the real mkfs.erofs makes of layers, looked at by the kernel that a guest would use."""

import asyncio
import io
import itertools
import tarfile
from typing import Any

import pytest

from hyperd.errors import ExhaustedError, InvalidError, UnavailableError, UnsupportedError
from hyperd.image.layers import Layers
from hyperd.image.settings import NOBODY
from hyperd.image.stream import Limits
from hyperd.model.image import Digest
from tests import images
from tests.images import Entry, directory, file, opaque, symlink, whiteout
from tests.mounts import names_in, small_filesystem
from tests.trees import tree_of


def layers_in(root, **options: Any) -> Layers:
    for name in ("layers", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {
        "mkfs": images.mkfs_erofs(),
        "run_as": NOBODY,
        "limits": Limits(1 << 30, 1 << 20),
        "parallel": 2,
    }
    return Layers(root / "layers", root / "tmp", **(chosen | options))


@pytest.fixture
def layers(tmp_path):
    made = layers_in(tmp_path)
    yield made
    made.close()
    assert names_in(tmp_path / "tmp") == []


async def convert(layers, tmp_path, tar: bytes, *, compression="none", diff_id=""):
    blob = tmp_path / "blob"
    blob.write_bytes(images._compressed(tar, compression))
    return await layers.convert(Digest(diff_id or images.digest_of(tar)), blob, lambda _: None)


async def test_layers_overlay_as_docker_would_have_it(layers, tmp_path):
    stack = [images.busybox_entries(), images.usage_entries(), images.changes_entries()]
    made = [
        await convert(layers, tmp_path, images.layer_tar(entries), compression="gzip") for entries in stack
    ]
    tree = await tree_of([layers.path(layer.diff_id) for layer in made], tmp_path / "mnt")
    assert tree["srv/replaced"]["data"] == images.digest_of(b"new\n")[7:]
    assert "srv/deleted" not in tree
    assert not any(path.startswith("srv/gone") for path in tree)
    assert [path for path in tree if path.startswith("srv/opaque/")] == ["srv/opaque/seen"]
    assert (tree["srv/setuid"]["mode"], tree["tmp"]["mode"]) == (0o4755, 0o1777)
    assert (tree["home/app/hello"]["uid"], tree["home/app/hello"]["gid"]) == (1000, 1000)
    assert tree["home/app/hello-again"]["links"] == tree["home/app/hello"]["links"] == 2
    assert tree["srv/attributed"]["xattrs"] == {"user.hyper": "yes"}
    assert tree["srv/link"]["target"] == "replaced"
    assert tree["bin/busybox"]["links"] > 100
    assert tree["srv/ünïcode-" + "long-" * 30]["kind"] == "-"
    assert {item["mtime"] for item in tree.values() if item["kind"] == "-"} == {images.MTIME}


async def stacked(layers, tmp_path, stack):
    made = [await convert(layers, tmp_path, images.layer_tar(entries)) for entries in stack]
    return await tree_of([layers.path(layer.diff_id) for layer in made], tmp_path / f"mnt-{len(stack)}")


async def test_a_file_becomes_a_directory_and_a_file_again(layers, tmp_path):
    stack = [
        [file("x", "file")],
        [directory("x"), file("x/in", "side")],
        [whiteout("x"), file("x", "file again")],
    ]
    tree = await stacked(layers, tmp_path, stack[:2])
    assert (tree["x"]["kind"], tree["x/in"]["kind"]) == ("d", "-")
    tree = await stacked(layers, tmp_path, stack)
    assert (tree["x"]["data"], "x/in" in tree) == (images.digest_of(b"file again")[7:], False)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_an_opaque_directory_hides_what_is_below_in_whatever_order_it_is_written(
    layers, tmp_path, order
):
    upper = [directory("x", 0o700), opaque("x"), file("x/new", "new")]
    lower = [directory("x"), file("x/old", "old"), directory("x/deep"), file("x/deep/old", "old")]
    tree = await stacked(layers, tmp_path, [lower, [upper[place] for place in order]])
    assert [path for path in tree if path.startswith("x/")] == ["x/new"]


async def test_names_that_are_no_unicode_are_kept(layers, tmp_path):
    odd = "caf\udce9"  # Latin-1's, as Python has bytes that are no UTF-8
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo(odd))
    made = await convert(layers, tmp_path, buffer.getvalue())
    assert odd in await tree_of([layers.path(made.diff_id)], tmp_path / "mnt")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_the_file_depends_on_the_content_alone(layers, tmp_path, compression):
    tar = images.layer_tar(images.usage_entries())
    made = await convert(layers, tmp_path, tar)
    first = layers.path(made.diff_id).read_bytes()
    again = layers_in(tmp_path / "again")
    assert await convert(again, tmp_path, tar, compression=compression) == made
    assert again.path(made.diff_id).read_bytes() == first
    again.close()
    status = layers.path(made.diff_id).stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_size % (1 << 20)) == (0o644, 0, 0)
    assert made.size_bytes == len(tar)
    assert 0 < made.stored_bytes <= status.st_size


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kept", [0, 512])
async def test_an_archive_without_its_end_is_whole_as_for_docker(layers, tmp_path, compression, kept):
    entries = [file(f"f{number}", "x" * number) for number in range(2000)]
    tar = images.layer_tar(entries).rstrip(b"\0")
    tar += bytes(-len(tar) % 512 + kept)
    made = await convert(layers, tmp_path, tar, compression=compression)
    assert len(await tree_of([layers.path(made.diff_id)], tmp_path / "mnt")) == 2000


async def test_a_tar_with_paths_upwards_stays_inside(layers, tmp_path):
    evil = [
        file("../../escaped", "x"),
        file("/absolute", "y"),
        symlink("out", "/etc"),
        file("out/passwd", "z"),
    ]
    try:
        made = await convert(layers, tmp_path, images.layer_tar(evil))
    except InvalidError:
        assert names_in(layers.root) == []
    else:
        tree = await tree_of([layers.path(made.diff_id)], tmp_path / "mnt")
        assert all(not path.startswith("..") for path in tree)
    assert not (tmp_path.parent / "escaped").exists()
    assert names_in(tmp_path / "tmp") == []


async def test_devices_and_fifos_are_kept(layers, tmp_path):
    entries = [directory("dev"), Entry("dev/pipe", type=tarfile.FIFOTYPE)]
    made = await convert(layers, tmp_path, images.layer_tar(entries))
    tree = await tree_of([layers.path(made.diff_id)], tmp_path / "mnt")
    assert tree["dev/pipe"]["kind"] == "p"


async def test_a_layer_that_is_not_its_diff_id_is_refused(layers, tmp_path):
    tar = images.layer_tar([file("a", "b")])
    with pytest.raises(InvalidError, match="not the one that the image's config names"):
        await convert(layers, tmp_path, tar, diff_id="sha256:" + "0" * 64)
    assert names_in(layers.root) == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"this is no tar at all" * 1000, InvalidError),
        (images.layer_tar(images.usage_entries())[:2000], InvalidError),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 5000, InvalidError),
        (images._compressed(images.layer_tar(images.usage_entries()), "gzip")[:-20], InvalidError),
        (images._compressed(images.layer_tar(images.usage_entries()), "zstd")[:-20], InvalidError),
        (b"\xfd7zXZ\x00" + b"x" * 100, UnsupportedError),
    ],
)
async def test_nonsense_is_a_clear_error_and_leaves_nothing(layers, tmp_path, data, kind):
    with pytest.raises(kind):
        await convert(layers, tmp_path, data)
    assert names_in(layers.root) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x00garbage" * 1000,
        b"\x00" * 512 + b"garbage!" * 64,
        images.layer_tar([file("a", "b")])[:1024] + b"\x00garbage" * 1000,
        b"\x00" * 700,
    ],
)
async def test_what_mkfs_takes_for_the_end_of_a_tar_is_refused(layers, tmp_path, data):
    with pytest.raises(InvalidError, match="not a tar archive"):
        await convert(layers, tmp_path, data)
    assert names_in(layers.root) == []


async def test_a_bomb_ends_at_the_limit(tmp_path):
    layers = layers_in(tmp_path, limits=Limits(64 << 20, 0))
    with pytest.raises(ExhaustedError, match="unpacks to more than 64 MiB"):
        await convert(
            layers, tmp_path, images.layer_tar([file("zeros", bytes(200 << 20))]), compression="zstd"
        )
    assert names_in(tmp_path / "layers") == names_in(tmp_path / "tmp") == []
    layers.close()


@pytest.mark.parametrize("reserve_mib", [0, 8])
async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, reserve_mib):
    async with small_filesystem(tmp_path / "small", size_mib=40) as root:
        layers = layers_in(root, limits=Limits(1 << 30, reserve_mib << 20))
        tar = images.layer_tar([file("zeros", bytes(100 << 20))])
        with pytest.raises(ExhaustedError, match="no space left"):
            await convert(layers, tmp_path, tar, compression="gzip")
        assert names_in(root / "layers") == names_in(root / "tmp") == []
        layers.close()


async def test_without_mkfs_the_error_says_so(tmp_path):
    layers = layers_in(tmp_path, mkfs="/nonexistent/mkfs.erofs")
    with pytest.raises(UnavailableError, match="cannot be run"):
        await convert(layers, tmp_path, images.layer_tar([file("a", "b")]))
    layers.close()


async def test_a_cancelled_conversion_leaves_nothing_and_no_child(layers, tmp_path):
    tar = images.layer_tar([file("zeros", bytes(300 << 20))])
    blob = tmp_path / "blob"
    blob.write_bytes(images._compressed(tar, "zstd"))
    begun = asyncio.Event()
    task = asyncio.create_task(layers.convert(Digest(images.digest_of(tar)), blob, lambda _: begun.set()))
    async with asyncio.timeout(20):
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert names_in(layers.root) == names_in(tmp_path / "tmp") == []


async def test_more_conversions_than_slots_all_end(layers, tmp_path):
    async def one(number):
        tar = images.layer_tar([file("number", str(number))])
        blob = tmp_path / f"blob-{number}"
        blob.write_bytes(tar)
        return await layers.convert(Digest(images.digest_of(tar)), blob, lambda _: None)

    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(one(number)) for number in range(8)]
    assert len({task.result().diff_id for task in made}) == 8
