# SPDX-License-Identifier: Apache-2.0
"""`hyper search`: what a registry has of a name."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hyper.v1 import image_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import flags, options, tree
from hyperctl.credentials import find_credentials
from hyperctl.errors import InvalidError
from hyperctl.output import print_rows, render_rows
from hyperctl.render import ellipsis

FILTERS = ("is-automated", "is-official", "stars")
HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}
COLUMNS = ("Name", "Description", "StarCount", "IsOfficial")
DESCRIPTION_CELLS = 45
SEARCH_TIMEOUT_S = 90.0

EPILOG = """\b
Examples:
  hyper search --filter is-official=true debian
  hyper search --filter stars=100 --no-trunc registry.example.org/web"""

app = tree.group()


@tree.command(app, "search", epilog=EPILOG)
def search(
    term: Annotated[
        str, typer.Argument(metavar="[REGISTRY/]TERM", help="On Docker Hub, or there", show_default=False)
    ],
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="KEY=VALUE", help=f"By {', '.join(FILTERS)}"),
    ] = None,
    limit: Annotated[str, typer.Option("--limit", metavar="N", help="At most so many, 1 to 100")] = "25",
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole descriptions")] = False,
    form: flags.RowsFormat = "",
    tls_insecure: Annotated[
        bool, typer.Option("--tls-insecure", help="Plain HTTP, or a certificate that nobody vouches for")
    ] = False,
) -> int:
    """Search a registry for images."""
    wanted = options.parse_filters(filters or [], FILTERS)
    _choose([], wanted)  # what is wrong with them is said before anything is asked
    if not limit.isdecimal() or len(limit) > 3 or not 1 <= int(limit) <= 100:
        raise InvalidError(f"limit {limit} is outside the range of [1, 100]", subject="--limit")
    request = pb.SearchImagesRequest(
        term=term, limit=int(limit), tls_insecure=tls_insecure, credentials=find_credentials(term)
    )
    answer = hyperd.ask(lambda client: client.images.SearchImages(request, timeout=SEARCH_TIMEOUT_S))
    rows = [
        _row(image, truncate=not no_trunc, as_json=form == "json") for image in _choose(answer.images, wanted)
    ]
    print_rows(render_rows(rows, columns=COLUMNS, headers=HEADERS, form=form))
    return 0


def _choose(images: Sequence[pb.FoundImage], wanted: Sequence[tuple[str, str]]) -> list[pb.FoundImage]:
    """Those that pass all filters, with Docker's meaning."""
    chosen = list(images)
    for key, value in wanted:
        if key == "stars":
            if not value.isdecimal() or len(value) > 9:
                raise InvalidError(f"invalid filter 'stars={value}'", subject="--filter")
            chosen = [image for image in chosen if image.stars >= int(value)]
        elif key == "is-official":
            yes = options.parse_bool("--filter is-official", value)
            chosen = [image for image in chosen if image.is_official == yes]
        else:
            yes = options.parse_bool("--filter is-automated", value)
            chosen = [image for image in chosen if image.is_automated == yes]
    return chosen


def _row(image: pb.FoundImage, *, truncate: bool, as_json: bool) -> dict[str, Any]:
    description = " ".join(image.description.split())

    def yes(value: bool) -> str:  # noqa: FBT001
        return str(value).lower() if as_json else "[OK]" if value else ""

    return {
        "Name": image.name,
        "Description": ellipsis(description, DESCRIPTION_CELLS) if truncate else description,
        "StarCount": str(image.stars),
        "IsOfficial": yes(image.is_official),
        "IsAutomated": yes(image.is_automated),
    }
