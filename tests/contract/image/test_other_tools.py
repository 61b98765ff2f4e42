# SPDX-License-Identifier: Apache-2.0
"""Our files as QEMU, the kernel and other people's tools see them."""

import json
import stat

import pytest

from hyperd.host import process
from hyperd.image.disk import DESCRIPTOR_NAME, Extent, render_disk
from hyperd.model.image import Digest, Image, ImageId
from tests import images
from tests.images import file
from tests.trees import tree_of


async def pull(store, name) -> Image:
    events = [event async for event in store.pull(name)]
    assert isinstance(events[-1], Image)
    return events[-1]


async def partitions(disk, raw):
    await process.run_checked(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(disk), str(raw)], timeout_s=60
    )
    argv = ["partx", "--raw", "--noheadings", "--output=START,SECTORS", str(raw)]
    lines = (await process.run_checked(argv, timeout_s=10)).stdout.decode().splitlines()
    return [(int(start), int(sectors)) for start, sectors in (line.split() for line in lines)]


async def test_qemu_reads_the_layers_as_partitions_of_one_disk(hub, store, tmp_path):
    image = await pull(store, await hub.push(images.busybox_image(), "busybox:1"))
    disk = await store.root_disk(image.image_id)
    found = await partitions(disk.path, tmp_path / "raw")
    assert len(found) == disk.layers == 3
    pieces = []
    for number, (start, sectors) in enumerate(found):
        piece = tmp_path / f"piece-{number}"
        with (tmp_path / "raw").open("rb") as raw:
            raw.seek(start * 512)
            piece.write_bytes(raw.read(sectors * 512))
        assert piece.read_bytes() == store._layers.path(image.diff_ids[number]).read_bytes()
        pieces.append(piece)
    tree = await tree_of(pieces, tmp_path / "mnt")
    assert "srv/replaced" in tree
    assert "srv/deleted" not in tree


@pytest.mark.parametrize("count", [70, 200])
async def test_qemu_reads_disks_of_very_many_layers(tmp_path, count):
    layers = [
        Extent(f"../layer-{number}", Digest(f"sha256:{number:064x}"), 1 << 20) for number in range(count)
    ]
    for number, layer in enumerate(layers):
        (tmp_path / f"layer-{number}").write_bytes(bytes([number]) * layer.size_bytes)
    (tmp_path / "disk").mkdir()
    files = render_disk(ImageId("sha256:" + "1" * 64), layers)
    for name, data in (
        ("head.img", files.head),
        ("tail.img", files.tail),
        (DESCRIPTOR_NAME, files.descriptor),
    ):
        (tmp_path / "disk" / name).write_bytes(data)
    found = await partitions(tmp_path / "disk" / DESCRIPTOR_NAME, tmp_path / "raw")
    assert len(found) == count
    with (tmp_path / "raw").open("rb") as raw:
        for number, (start, _) in enumerate(found):
            raw.seek(start * 512)
            assert raw.read(1) == bytes([number])


async def test_the_state_directory_can_be_moved(hub, store, tmp_path):
    image = await pull(store, await hub.push(images.build([[file("a")]]), "moved:1"))
    disk = await store.root_disk(image.image_id)
    moved = tmp_path / "elsewhere"
    store._root.rename(moved)
    assert len(await partitions(moved / disk.path.relative_to(store._root), tmp_path / "raw")) == 1
    moved.rename(store._root)


async def test_qemus_user_can_read_all_that_it_needs_and_no_more(hub, store):
    image = await pull(store, await hub.push(images.build([[file("a")]]), "modes:1"))
    disk = await store.root_disk(image.image_id)
    for path in (*disk.path.parent.iterdir(), store._layers.path(image.diff_ids[0])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        for parent in path.relative_to(store._root).parents:
            assert (store._root / parent).stat().st_mode & 0o001
    for private in ("tmp", "blobs"):
        assert stat.S_IMODE((store._root / private).stat().st_mode) == 0o700


async def test_skopeo_reads_our_store(hub, store, tmp_path):
    built = images.build([[file("a", "one")], [file("b", "two")]])
    name = await hub.push(built, "readable:1")
    await pull(store, name)
    source = f"oci:{store._root}:{name}"
    raw = (await process.run_checked(["skopeo", "inspect", "--raw", source], timeout_s=20)).stdout
    assert images.digest_of(raw) == built.manifest_digest
    await process.run_checked(["skopeo", "copy", "--quiet", source, f"dir:{tmp_path}/copy"], timeout_s=20)
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {digest.removeprefix("sha256:") for digest in built.layer_digests} <= copied


async def test_dockers_manifests_are_kept_as_they_are(hub, store):
    """skopeo 1.9 does not look for them in a layout; the image-spec allows them there."""
    built = images.build([[file("a", "one")]], docker=True)
    name = await hub.push(built, "docker:1")
    await pull(store, name)
    [entry] = json.loads((store._root / "index.json").read_bytes())["manifests"]
    assert (entry["digest"], entry["mediaType"]) == (built.manifest_digest, images.DOCKER_MANIFEST)
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": name}
    assert store._content.read(Digest(built.manifest_digest), limit=1 << 20) == built.manifest


async def test_an_image_goes_from_our_store_to_another_one_unchanged(hub, store):
    built = images.build([[file("a", "one")]])
    name = await hub.push(built, "first:1")
    await pull(store, name)
    target = f"docker://{hub.address}/second:1"
    await process.run_checked(
        ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{store._root}:{name}", target],
        timeout_s=20,
    )
    await store.remove(name)
    assert (await pull(store, f"{hub.address}/second:1")).manifest_digest == built.manifest_digest
