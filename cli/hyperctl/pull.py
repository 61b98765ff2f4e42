# SPDX-License-Identifier: Apache-2.0
"""Pulling an image, for `hyper pull` and for `hyper run` of an image that is not here."""

import sys

from hyper.v1 import image_pb2 as pb
from hyperctl.client import Client
from hyperctl.errors import CliError
from hyperctl.names import with_default_tag
from hyperctl.progress import LayersProgress
from hyperctl.progress_json import JsonProgress


async def pull_images(
    client: Client, request: pb.PullImageRequest, progress: LayersProgress | JsonProgress, headline: str = ""
) -> list[pb.Image]:
    """Show it; hyperd has Docker's words. Hanging up (Ctrl-C) ends a pull that nobody else waits for.

    One image, or with ``all_tags`` one a tag.
    """
    images: list[pb.Image] = []
    try:
        async for response in client.images.PullImage(request):
            if headline:  # only now: hyperd has understood the reference
                progress.note(headline)
                headline = ""
            match response.WhichOneof("kind"):
                case "layer":
                    progress.show(response.layer)
                case "notice":
                    progress.note(response.notice)
                case "image":
                    images.append(response.image)
    finally:
        progress.finish()
    if not images:
        raise CliError("the daemon ended the pull without an image", subject=request.reference)
    return images


def pull_request(reference: str, *, platform: str = "") -> pb.PullImageRequest:
    """With the user's credentials for that registry."""
    from hyperctl.credentials import find_credentials

    return pb.PullImageRequest(
        reference=reference, platform=platform, credentials=find_credentials(reference)
    )


async def pull_missing(client: Client, reference: str, platform: str) -> None:
    """As `run` does it: told on standard error, so that standard output stays the process's."""
    print(f"Unable to find image '{with_default_tag(reference)}' locally", file=sys.stderr, flush=True)
    await pull_images(client, pull_request(reference, platform=platform), LayersProgress(sys.stderr))
