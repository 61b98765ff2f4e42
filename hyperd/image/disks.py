# SPDX-License-Identifier: Apache-2.0
"""The disks of images, as files: three small ones each, around layers that they share.

    disks/IMAGE/head.img  disks/IMAGE/tail.img  disks/IMAGE/disk.vmdk  ->  ../../layers/DIFF_ID.erofs

Extents are named relative to the descriptor, which QEMU resolves: the state directory can be moved.
"""

from collections.abc import Sequence
from pathlib import Path

from hyperd.errors import UnavailableError
from hyperd.host import files
from hyperd.image.content import hex_of
from hyperd.image.disk import ALIGNMENT, DESCRIPTOR_NAME, HEAD_NAME, TAIL_NAME, Extent, render_disk
from hyperd.image.layers import Layers
from hyperd.model.image import Digest, ImageId, RootDisk

EMPTY_TAR = bytes(1024)
# An image without layers still gets a root: one EROFS file with nothing in it, so that guests know no special case.
EMPTY_LAYER = Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")


class Disks:
    """Everything here blocks."""

    def __init__(self, root: Path, layers: Layers) -> None:
        self.root = root
        self._layers = layers

    def path(self, image_id: ImageId) -> Path:
        return self.root / hex_of(image_id) / DESCRIPTOR_NAME

    def has_all(self, diff_ids: Sequence[Digest]) -> bool:
        return all(self._layers.has(diff_id) for diff_id in joined(diff_ids))

    def make(self, image_id: ImageId, diff_ids: Sequence[Digest]) -> RootDisk:
        """Idempotent; the descriptor is written last. Raises UnavailableError when a layer's file is gone."""
        descriptor = self.path(image_id)
        with files.file_errors(descriptor):
            extents = [self._extent(image_id, diff_id) for diff_id in joined(diff_ids)]
            rendered = render_disk(image_id, extents)
            if not _is_written(descriptor, rendered.descriptor):
                files.make_directory(descriptor.parent, 0o755)
                files.write_atomic(descriptor.with_name(HEAD_NAME), rendered.head)
                files.write_atomic(descriptor.with_name(TAIL_NAME), rendered.tail)
                files.write_atomic(descriptor, rendered.descriptor)
        return RootDisk(descriptor, len(extents))

    def _extent(self, image_id: ImageId, diff_id: Digest) -> Extent:
        path = self._layers.path(diff_id)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise _damaged(image_id, diff_id, "its file is gone") from error
        if size == 0 or size % ALIGNMENT:
            raise _damaged(image_id, diff_id, f"its file has {size} bytes")
        return Extent(f"../../{self._layers.root.name}/{path.name}", diff_id, size)


def _is_written(descriptor: Path, wanted: bytes) -> bool:
    """False also when a layer was made anew, by another mkfs.erofs, and has another size now."""
    try:
        return descriptor.read_bytes() == wanted
    except FileNotFoundError:
        return False


def joined(diff_ids: Sequence[Digest]) -> Sequence[Digest]:
    """What is on the disk of an image with these layers."""
    return diff_ids or (EMPTY_LAYER,)


def _damaged(image_id: ImageId, diff_id: Digest, why: str) -> UnavailableError:
    return UnavailableError(
        "a layer of the image is damaged",
        subject=image_id,
        evidence=f"{diff_id}: {why}",
        hint="`hyper pull` the image again",
    )
