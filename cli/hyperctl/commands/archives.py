# SPDX-License-Identifier: Apache-2.0
"""`hyper save`, `load`, `import` and `export`: images and root file systems as tars."""

import os
import stat
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from hyper.v1 import container_pb2
from hyper.v1 import image_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, pipes, tree
from hyperctl.errors import InvalidError
from hyperctl.names import familiar_name
from hyperctl.pipes import STANDARD
from hyperctl.progress import LOADING, ByteProgress, LayersProgress
from hyperctl.progress_json import JsonProgress, progress_in

app = tree.group()

Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Instead of standard output [-]")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--change",
        "-c",
        metavar="INSTRUCTION",
        help="Of a Dockerfile, as in 'CMD [\"sh\"]'",
        show_default=False,
    ),
]


@tree.command(app, "save")
def save(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Names or ids; a name without a tag has all of its tags",
            autocompletion=completion.images,
            show_default=False,
        ),
    ],
    *,
    output: Output = STANDARD,
    platform: Annotated[
        str,
        typer.Option(
            "--platform", metavar="OS/ARCH", help="Only if the images are for this", show_default=False
        ),
    ] = "",
) -> int:
    """Write images to one tar, which docker, podman and skopeo read. A file appears whole, or not at all."""
    pipes.refuse_terminal_output("save", "images", output)

    async def work(fd: int) -> None:
        async with hyperd.connect() as client:
            call = client.images.SaveImages(pb.SaveImagesRequest(images=images, platform=platform))
            await pipes.write_stream(call, fd, output, "saved")

    with pipes.open_output(output) as fd:
        hyperd.run(work(fd))
    return 0


@tree.command(app, "export")
def export(
    container: Annotated[
        str,
        typer.Argument(
            metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
        ),
    ],
    *,
    output: Output = STANDARD,
) -> int:
    """Write a container's root file system as a tar. A file appears whole, or not at all."""
    pipes.refuse_terminal_output("export", "a file system", output)

    async def work(fd: int) -> None:
        async with hyperd.connect() as client:
            call = client.containers.ExportContainer(
                container_pb2.ExportContainerRequest(container=container)
            )
            await pipes.write_stream(call, fd, output, "exported")

    with pipes.open_output(output) as fd:
        hyperd.run(work(fd))
    return 0


@tree.command(app, "load")
def load(
    *,
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Instead of standard input [-]")
    ] = STANDARD,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
    platform: Annotated[
        str, typer.Option("--platform", metavar="OS/ARCH", help="Instead of the host's", show_default=False)
    ] = "",
    form: flags.ProgressFormat = "",
) -> int:
    """Take images from a tar, as `save` or `docker save` writes it; plain or compressed."""
    pipes.refuse_terminal_input("load", "images", source)
    with pipes.open_input(source) as fd:
        _load(
            fd,
            source,
            platform,
            progress_in(form, sys.stdout, LOADING, quiet=quiet or not (form or sys.stdout.isatty())),
        )
    return 0


def _load(fd: int, place: str, platform: str, progress: LayersProgress | JsonProgress) -> None:
    from hyper.v1 import image_pb2_grpc

    reading = pipes.Input(fd, place)

    def requests() -> Iterator[pb.LoadImagesRequest]:
        yield pb.LoadImagesRequest(platform=platform)
        for data in reading.chunks():
            yield pb.LoadImagesRequest(data=data)

    with reading.errors(), hyperd.connect_blocking() as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).LoadImages(requests())
        try:
            for response in call:
                match response.WhichOneof("kind"):
                    case "layer":
                        progress.show(response.layer)
                    case "notice":
                        progress.note(response.notice)
                    case "image":
                        progress.finish()
                        _tell_loaded(response.image, progress)
        finally:
            call.cancel()
            progress.finish()


def _tell_loaded(loaded: pb.LoadedImage, progress: LayersProgress | JsonProgress) -> None:
    if isinstance(progress, JsonProgress):
        progress.tell({"ID": loaded.image.id, "Tags": list(loaded.tags)})
        return
    for tag in loaded.tags:
        print(f"Loaded image: {familiar_name(tag)}", flush=True)
    if not loaded.tags:
        print(f"Loaded image ID: {loaded.image.id}", flush=True)


@tree.command(app, "import")
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|-", show_default=False)],
    reference: Annotated[str, typer.Argument(metavar="[NAME[:TAG]]", show_default=False)] = "",
    *,
    changes: Changes = None,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="For the history", show_default=False)
    ] = "",
    platform: Annotated[
        str, typer.Option("--platform", metavar="OS/ARCH", help="Instead of the host's", show_default=False)
    ] = "",
) -> int:
    """Make an image of a root file system's tar, and print its id."""
    if source.startswith(("http://", "https://")):
        raise InvalidError(
            "hyper fetches no URLs",
            subject=source,
            hint=f"curl -L {source} | hyper import - {reference}".rstrip(),
        )
    pipes.refuse_terminal_input("import", "a file system", source, hint="name a file, or redirect")
    options = pb.ImportOptions(reference=reference, message=message, changes=changes or [], platform=platform)
    with pipes.open_input(source) as fd:
        print(_import(fd, source, options).id)
    return 0


def _import(fd: int, place: str, options: pb.ImportOptions) -> pb.Image:
    from hyper.v1 import image_pb2_grpc

    about = os.fstat(fd)
    total_bytes = about.st_size if stat.S_ISREG(about.st_mode) else 0
    progress = ByteProgress(sys.stderr, "imported", total_bytes=total_bytes)
    reading = pipes.Input(fd, place, progress.add)

    def requests() -> Iterator[pb.ImportImageRequest]:
        yield pb.ImportImageRequest(options=options)
        for data in reading.chunks():
            yield pb.ImportImageRequest(data=data)
        yield pb.ImportImageRequest(end=True)

    try:
        with reading.errors(), hyperd.connect_blocking() as channel:
            return image_pb2_grpc.ImageServiceStub(channel).ImportImage(requests()).image
    finally:
        progress.finish()
