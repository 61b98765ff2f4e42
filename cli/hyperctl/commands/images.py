# SPDX-License-Identifier: Apache-2.0
"""`hyper pull`, `images` and `rmi`."""

import sys
import time
from typing import Annotated

import typer

from hyper.v1 import image_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, tree
from hyperctl.client import Client
from hyperctl.image_shape import IMAGE_COLUMNS, IMAGE_COLUMNS_DIGESTS, IMAGE_HEADERS, image_rows
from hyperctl.names import is_registry_reference, with_default_tag
from hyperctl.output import print_rows, render_rows
from hyperctl.pull import pull_image

FILTERS = ("reference", "dangling")

app = tree.group()


@tree.command(app, "pull")
def pull(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG|@DIGEST]",
            help="Also docker-archive:FILE, oci-archive:FILE, oci:DIR",
            show_default=False,
        ),
    ],
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the name at the end")] = False,
    platform: Annotated[
        str, typer.Option("--platform", metavar="OS/ARCH", help="Instead of the host's", show_default=False)
    ] = "",
    tls_insecure: Annotated[
        bool, typer.Option("--tls-insecure", help="Plain HTTP, or a certificate that nobody vouches for")
    ] = False,
) -> int:
    """Download an image from a registry, or take one from an archive."""
    request = pb.PullImageRequest(reference=reference, platform=platform, tls_insecure=tls_insecure)
    headline = "" if with_default_tag(reference) == reference else "Using default tag: latest"
    image = hyperd.ask(
        lambda client: pull_image(client, request, out=sys.stdout, quiet=quiet, headline=headline)
    )
    print(_full_name(image, reference))
    return 0


def _full_name(image: pb.Image, reference: str) -> str:
    """The name it has in the store; what was typed when none of its names is that."""
    if not is_registry_reference(reference):
        return next(iter(image.tags), image.id)
    wanted = with_default_tag(reference)
    for prefix in ("", "docker.io/library/", "docker.io/"):
        if f"{prefix}{wanted}" in image.tags:
            return f"{prefix}{wanted}"
    return wanted


@tree.command(app, "images")
def images(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME[:TAG]]", help="Only these", autocompletion=completion.images),
    ] = None,
    *,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also those without a tag")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only ids")] = False,
    digests: Annotated[bool, typer.Option("--digests", help="Also the digests")] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole ids")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="KEY=VALUE", help="reference=NAME, dangling=true"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="json, table, or a template", show_default=False)
    ] = "",
) -> int:
    """List images."""
    chosen = options.parse_filters(filters or [], FILTERS)
    dangling = [value for key, value in chosen if key == "dangling"]
    request = pb.ListImagesRequest(
        all=show_all or bool(dangling),
        references=[*(references or []), *(value for key, value in chosen if key == "reference")],
    )
    response = hyperd.ask(lambda client: client.images.ListImages(request, timeout=hyperd.QUERY_TIMEOUT_S))
    shown = list(response.images)
    if dangling:
        wanted = options.parse_bool("--filter dangling", dangling[-1])
        shown = [image for image in shown if (not image.tags) == wanted]
    now_s = time.time()
    rows = [row for image in shown for row in image_rows(image, now_s=now_s, truncate=not no_trunc)]
    if quiet:
        print_rows("\n".join(dict.fromkeys(row["ID"] for row in rows)))
        return 0
    columns = IMAGE_COLUMNS_DIGESTS if digests else IMAGE_COLUMNS
    print_rows(render_rows(rows, columns=columns, headers=IMAGE_HEADERS, form=form))
    return 0


@tree.command(app, "rmi")
def rmi(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Names or ids", autocompletion=completion.images, show_default=False
        ),
    ],
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="All its tags, containers notwithstanding")
    ] = False,
) -> int:
    """Remove images. A name is only taken off while the image has others."""

    async def remove(client: Client, name: str) -> None:
        response = await client.images.RemoveImage(pb.RemoveImageRequest(image=name, force=force))
        for tag in response.untagged:
            print(f"Untagged: {tag}")
        for digest in response.deleted:
            print(f"Deleted: {digest}", flush=True)

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(client, names, lambda name: remove(client, name), echo=False)

    return hyperd.run(work())
