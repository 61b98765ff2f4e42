# SPDX-License-Identifier: Apache-2.0
"""`hyper images`, `history`, `tag` and `rmi`."""

import time
from typing import Annotated

import typer

from hyper.v1 import image_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, options, tree
from hyperctl.client import Client
from hyperctl.image_shape import (
    HISTORY_COLUMNS,
    HISTORY_HEADERS,
    IMAGE_COLUMNS,
    IMAGE_COLUMNS_DIGESTS,
    IMAGE_HEADERS,
    history_rows,
    image_rows,
)
from hyperctl.names import familiar_name
from hyperctl.output import print_rows, render_rows

FILTERS = ("dangling", "label", "before", "since", "reference", "until")

app = tree.group()


@tree.command(app, "images")
def images(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[:TAG]]...", help="Only these; * is any name", autocompletion=completion.images
        ),
    ] = None,
    *,
    show_all: Annotated[
        bool,
        typer.Option("--all", "-a", help="All are shown, with or without (hyper keeps no intermediate ones)"),
    ] = False,
    quiet: flags.OnlyIds = False,
    digests: Annotated[bool, typer.Option("--digests", help="Also the digests")] = False,
    no_trunc: flags.WholeIds = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="KEY=VALUE", help=f"By {', '.join(FILTERS)}"),
    ] = None,
    form: flags.RowsFormat = "",
) -> int:
    """List images."""
    from hyperctl.image_filters import choose

    wanted = options.parse_filters(filters or [], FILTERS)
    wanted += [("reference", reference) for reference in references or []]
    request = pb.ListImagesRequest(all=show_all)
    response = hyperd.ask(lambda client: client.images.ListImages(request, timeout=hyperd.QUERY_TIMEOUT_S))
    now_s = time.time()
    chosen = choose(response.images, wanted, now_ns=time.time_ns())
    rows = [row for image in chosen for row in image_rows(image, now_s=now_s, truncate=not no_trunc)]
    if quiet and not form:
        print_rows("\n".join(row["ID"] for row in rows))
        return 0
    columns = IMAGE_COLUMNS_DIGESTS if digests else IMAGE_COLUMNS
    print_rows(render_rows(rows, columns=columns, headers=IMAGE_HEADERS, form=form))
    return 0


@tree.command(app, "history")
def history(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="Name or id", autocompletion=completion.images, show_default=False
        ),
    ],
    *,
    human: Annotated[
        bool, typer.Option("--human/--no-human", "-H", help="Sizes and times to be read by people")
    ] = True,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole ids and commands")] = False,
    quiet: flags.OnlyIds = False,
    form: flags.RowsFormat = "",
) -> int:
    """Show what an image was made of, the latest step first."""
    answer = hyperd.ask(
        lambda client: client.images.InspectImage(
            pb.InspectImageRequest(image=image), timeout=hyperd.QUERY_TIMEOUT_S
        )
    )
    rows = list(history_rows(answer.image, now_s=time.time(), truncate=not no_trunc, human=human))
    if quiet and not form:
        print_rows("\n".join(row["ID"] for row in rows))
        return 0
    print_rows(render_rows(rows, columns=HISTORY_COLUMNS, headers=HISTORY_HEADERS, form=form))
    return 0


@tree.command(app, "tag")
def tag(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE_IMAGE[:TAG]", autocompletion=completion.images, show_default=False),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET_IMAGE[:TAG]", show_default=False)],
) -> int:
    """Give an image one more name. An image that had it loses it."""
    hyperd.ask(lambda client: client.images.TagImage(pb.TagImageRequest(image=source, reference=target)))
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
            print(f"Untagged: {familiar_name(tag)}")
        for digest in response.deleted:
            print(f"Deleted: {digest}", flush=True)

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(client, names, lambda name: remove(client, name), echo=False)

    return hyperd.run(work())
