# SPDX-License-Identifier: Apache-2.0
"""`hyper image prune`, `container prune` and `system prune`."""

from typing import Annotated

import typer

from hyperctl import client as hyperd
from hyperctl import options, pruning, tree
from hyperctl.client import Client
from hyperctl.errors import InvalidError
from hyperctl.pruning import Pruned

FILTERS = ("until", "label", "label!")
IMAGES = "all dangling images"
ALL_IMAGES = "all images without at least one container associated to them"
CONTAINERS = "all stopped containers"
NETWORKS = "all networks not used by at least one container"
VOLUMES = "all anonymous volumes not used by at least one container"

app = tree.group()

Force = Annotated[bool, typer.Option("--force", "-f", help="Do not ask")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="KEY=VALUE", help="until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]"),
]
All = Annotated[bool, typer.Option("--all", "-a", help="Every image that no container uses, tags or not")]


@tree.command(app, "image-prune")
def image_prune(*, everything: All = False, force: Force = False, filters: Filters = None) -> int:
    """Remove images that nobody uses: those without a tag, with --all every one."""
    wanted = options.parse_filters(filters or [], FILTERS)
    pruning.require_consent(
        f"WARNING! This will remove {ALL_IMAGES if everything else IMAGES}.", "image prune", force=force
    )

    async def work(client: Client) -> Pruned:
        return await pruning.prune_images(client, wanted, everything=everything)

    pruning.tell([hyperd.ask(work)])
    return 0


@tree.command(app, "container-prune")
def container_prune(*, force: Force = False, filters: Filters = None) -> int:
    """Remove all stopped containers. One that is hibernated is not stopped."""
    wanted = options.parse_filters(filters or [], FILTERS)
    pruning.require_consent(f"WARNING! This will remove {CONTAINERS}.", "container prune", force=force)

    async def work(client: Client) -> Pruned:
        return await pruning.prune_containers(client, wanted)

    pruning.tell([hyperd.ask(work)])
    return 0


@tree.command(app, "system-prune")
def system_prune(
    *,
    everything: All = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="And anonymous volumes that no container has")
    ] = False,
    force: Force = False,
    filters: Filters = None,
) -> int:
    """Remove stopped containers, and networks and images that nobody uses. Snapshots and templates stay."""
    wanted = options.parse_filters(filters or [], FILTERS)
    if volumes and (odd := next((key for key, _ in wanted if key != "label"), "")):
        raise InvalidError(f"the filter {odd!r} is not known of volumes", subject="--volumes")
    items = [
        *(CONTAINERS, NETWORKS),
        *([VOLUMES] if volumes else []),
        ALL_IMAGES if everything else IMAGES,
    ]
    lines = ["WARNING! This will remove:", *(f"  - {item}" for item in items)]
    if filters:
        lines += ["", "  Items to be pruned will be filtered with:", *(f"  - {text}" for text in filters)]
    pruning.require_consent("\n".join([*lines, ""]), "system prune", force=force)

    async def work(client: Client) -> list[Pruned]:
        return [
            await pruning.prune_containers(client, wanted),  # first: they keep all the others
            await pruning.prune_networks(client, wanted),
            *([await pruning.prune_volumes(client, wanted)] if volumes else []),
            await pruning.prune_images(client, wanted, everything=everything),
        ]

    pruning.tell(hyperd.ask(work))
    return 0
