# SPDX-License-Identifier: Apache-2.0
"""`hyper system df`, and `hyper df`."""

import time
from typing import Annotated

import typer

from hyper.v1 import container_pb2, image_pb2, system_pb2
from hyperctl import client as hyperd
from hyperctl import flags, tree, usage_shape
from hyperctl.client import Client
from hyperctl.output import print_rows, render_document, render_rows

app = tree.group()


@tree.command(app, "df")
def df(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Each image, container, volume, snapshot and template")
    ] = False,
    form: flags.RowsFormat = "",
) -> int:
    """Show what takes room on the disk: allocated blocks, not lengths."""
    if verbose:
        return _verbose(form)
    usage = hyperd.ask(_usage)
    rows = usage_shape.summary_rows(usage)
    print_rows(render_rows(rows, columns=usage_shape.COLUMNS, headers=usage_shape.HEADERS, form=form))
    if not form or form == "table":
        print_rows(usage_shape.budget_line(usage))
    return 0


@tree.command(app, "growth")
def growth(
    *,
    form: flags.RowsFormat = "",
) -> int:
    """Show how large writable disks and volumes may become, and whether the host has room for that."""
    usage = hyperd.ask(_usage)
    rows = usage_shape.growth_rows(usage)
    columns, headers = usage_shape.GROWTH_COLUMNS, usage_shape.GROWTH_HEADERS
    print_rows(render_rows(rows, columns=columns, headers=headers, form=form))
    if not form or form == "table":
        print(f"\n{usage_shape.describe_commitment(usage)}")
    return 0


async def _usage(client: Client) -> system_pb2.GetDiskUsageResponse:
    return await client.system.GetDiskUsage(system_pb2.GetDiskUsageRequest(), timeout=hyperd.QUERY_TIMEOUT_S)


def _verbose(form: str) -> int:
    async def ask(client: Client) -> usage_shape.Everything:
        timeout_s = hyperd.QUERY_TIMEOUT_S
        containers = await client.list_containers(container_pb2.ListContainersRequest(all=True))
        images = await client.images.ListImages(image_pb2.ListImagesRequest(all=True), timeout=timeout_s)
        return usage_shape.Everything(
            await _usage(client),
            {image.id: image for image in images.images},
            {container.id: container for container in containers},
        )

    everything = hyperd.ask(ask)
    parts = usage_shape.detailed_rows(everything, now_s=time.time())
    if form and form != "table":
        print(render_document({part.key: part.rows for part in parts}, form))
        return 0
    texts = []
    for part in parts:
        table = render_rows(part.rows, columns=part.columns, headers=part.headers)
        texts.append(f"{part.title} space usage:\n\n{table}\n")
    print("\n".join(texts))
    return 0
