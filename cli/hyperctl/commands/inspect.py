# SPDX-License-Identifier: Apache-2.0
"""`hyper inspect`: containers and images as Docker's JSON."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hyper.v1 import container_pb2, image_pb2
from hyperctl import client as hyperd
from hyperctl import completion, errors, flags, several, tree
from hyperctl.client import Client
from hyperctl.completion import Completer
from hyperctl.errors import CliError, InvalidError
from hyperctl.image_shape import image_document
from hyperctl.shape import container_document

KINDS = ("container", "image")

EPILOG = """\b
Examples:
  hyper inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web
  hyper inspect -f '{{json .Sandbox}}' web"""

app = tree.group()


def _names(what: str, complete: Completer) -> Any:
    return typer.Argument(
        metavar="NAME...", help=f"{what}, by name or id", autocompletion=complete, show_default=False
    )


@tree.command(app, "inspect", epilog=EPILOG)
def inspect(
    names: Annotated[list[str], _names("Containers or images", completion.containers_and_images)],
    *,
    form: flags.DocumentsFormat = "",
    kind: Annotated[
        str, typer.Option("--type", metavar="container|image", help="Look only there", show_default=False)
    ] = "",
) -> int:
    """Show everything about containers and images."""
    if kind and kind not in KINDS:
        raise InvalidError(f"invalid argument {kind!r}: {' or '.join(KINDS)}", subject="--type")
    return show(names, form=form, kinds=(kind,) if kind else KINDS)


@tree.command(app, "container-inspect")
def container_inspect(
    names: Annotated[list[str], _names("Containers", completion.containers)],
    *,
    form: flags.DocumentsFormat = "",
) -> int:
    """Show everything about containers."""
    return show(names, form=form, kinds=("container",))


@tree.command(app, "image-inspect")
def image_inspect(
    names: Annotated[list[str], _names("Images", completion.images)], *, form: flags.DocumentsFormat = ""
) -> int:
    """Show everything about images."""
    return show(names, form=form, kinds=("image",))


def show(names: list[str], *, form: str, kinds: tuple[str, ...]) -> int:
    return several.inspect(names, form, lambda client, name: find_document(client, name, kinds))


async def find_document(client: Client, name: str, kinds: tuple[str, ...]) -> Mapping[str, Any]:
    """The first of ``kinds`` that knows the name. Raises CliError of the last one when none does."""
    failure: CliError | None = None
    for kind in kinds:
        try:
            with hyperd.rpc_errors(client.address):
                return await _ask(client, name, kind)
        except CliError as error:
            failure = error
            if error.exit_status != errors.NOT_FOUND:
                break
    if failure is not None and failure.exit_status != errors.NOT_FOUND:
        raise failure
    what = " or ".join(kinds)
    raise CliError(f"no such {what}", subject=name, exit_status=errors.NOT_FOUND) from failure


async def _ask(client: Client, name: str, kind: str) -> Mapping[str, Any]:
    timeout_s = hyperd.QUERY_TIMEOUT_S
    if kind == "container":
        container = await client.containers.InspectContainer(
            container_pb2.InspectContainerRequest(container=name), timeout=timeout_s
        )
        return container_document(container.container, await _image_of(client, container.container))
    image = await client.images.InspectImage(image_pb2.InspectImageRequest(image=name), timeout=timeout_s)
    return image_document(image.image)


async def _image_of(client: Client, container: container_pb2.Container) -> image_pb2.Image | None:
    """None when it was removed: the container still runs from what it holds."""
    request = image_pb2.InspectImageRequest(image=container.image_id)
    try:
        with hyperd.rpc_errors(client.address):
            return (await client.images.InspectImage(request, timeout=hyperd.QUERY_TIMEOUT_S)).image
    except CliError as error:
        if error.exit_status != errors.NOT_FOUND:
            raise
    return None
