# SPDX-License-Identifier: Apache-2.0
"""Pulling an image, for `hyper pull` and for `hyper run` of an image that is not here."""

import sys
from typing import TextIO

from hyper.v1 import image_pb2 as pb
from hyperctl.client import Client
from hyperctl.errors import CliError
from hyperctl.names import is_registry_reference, repository_path, split_reference, with_default_tag
from hyperctl.progress import PullProgress


async def pull_image(
    client: Client, request: pb.PullImageRequest, *, out: TextIO, quiet: bool = False
) -> pb.Image:
    """Show it on ``out`` in Docker's words. Hanging up (Ctrl-C) ends a pull that nobody else waits for."""
    progress = PullProgress(out, quiet=quiet)
    name, tag, digest = split_reference(with_default_tag(request.reference))
    if is_registry_reference(request.reference):
        progress.note(f"{digest or tag}: Pulling from {repository_path(name)}")
    image: pb.Image | None = None
    try:
        async for response in client.images.PullImage(request):
            match response.WhichOneof("kind"):
                case "layer":
                    progress.show(response.layer)
                case "notice":
                    progress.note(response.notice)
                case "image":
                    image = response.image
    finally:
        progress.finish()
    if image is None:
        raise CliError("the daemon ended the pull without an image", subject=request.reference)
    if image.manifest_digest:
        progress.note(f"Digest: {image.manifest_digest}")
    what = "Downloaded newer image" if progress.downloaded else "Image is up to date"
    progress.note(f"Status: {what} for {with_default_tag(request.reference)}")
    return image


async def pull_missing(client: Client, reference: str, platform: str) -> None:
    """As `run` does it: told on standard error, so that standard output stays the process's."""
    print(f"Unable to find image '{with_default_tag(reference)}' locally", file=sys.stderr, flush=True)
    await pull_image(client, pb.PullImageRequest(reference=reference, platform=platform), out=sys.stderr)
