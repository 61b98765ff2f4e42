# SPDX-License-Identifier: Apache-2.0
"""The image that the engine has made, out of the builder, which is not believed: an id is looked up, a config parsed, a
layer hashed. Layers that the store has stay where they are.
"""

import json
import re
from collections.abc import Sequence

from hyperd.build import plan
from hyperd.build.builder import TRANSFER_TIMEOUT_S, Builder
from hyperd.errors import ImageNotFoundError, UnavailableError
from hyperd.image import ImageStore
from hyperd.model.build import Built
from hyperd.model.image import Image

MAX_CONFIG_BYTES = 8 << 20
MAX_MANIFEST_BYTES = 4 << 20
MAX_LAYER_BYTES = 64 << 30
_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


async def take(builder: Builder, images: ImageStore, tags: Sequence[str]) -> Built:
    """Raises what ``ImageStore.take_built`` raises, and UnavailableError for an engine that makes no sense."""
    image_id = (await builder.read(plan.ID_FILE, 200)).decode(errors="replace").strip()
    if not _DIGEST.fullmatch(image_id):
        raise UnavailableError("the engine told no image id", evidence=image_id[:200])
    image = await _find(images, image_id) or await _take_out(builder, images, image_id, tags)
    return Built(image, tuple([await images.tag(image.image_id, tag) for tag in tags]))


async def _find(images: ImageStore, image_id: str) -> Image | None:
    try:
        return await images.get(image_id)
    except ImageNotFoundError:
        return None


async def _take_out(builder: Builder, images: ImageStore, image_id: str, tags: Sequence[str]) -> Image:
    push = (
        "buildah",
        "push",
        "--quiet",
        "--disable-compression",
        "--format=v2s2",
        image_id,
        f"dir:{plan.OUT}",
    )
    await builder.ask(push, timeout_s=TRANSFER_TIMEOUT_S)
    config = await builder.read(f"{plan.OUT}/{await _config_name(builder)}", MAX_CONFIG_BYTES)
    return await images.take_built(
        config, lambda diff_id: builder.opened(f"{plan.OUT}/{_hex(diff_id)}", MAX_LAYER_BYTES), tags
    )


async def _config_name(builder: Builder) -> str:
    manifest = await builder.read(f"{plan.OUT}/manifest.json", MAX_MANIFEST_BYTES)
    try:
        name = _hex(str(json.loads(manifest)["config"]["digest"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnavailableError("the engine wrote no manifest", evidence=repr(error)[:200]) from error
    if not _HEX.fullmatch(name):
        raise UnavailableError("the engine wrote no manifest", evidence=name[:100])
    return name


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
