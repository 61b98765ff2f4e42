# SPDX-License-Identifier: Apache-2.0
"""`hyper commit` and `diff`: what a container has changed against its image."""

import re
import sys
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, tree
from hyperctl.commands.archives import Changes
from hyperctl.errors import CliError
from hyperctl.progress import ByteProgress

LETTERS = {
    pb.CHANGE_KIND_ADDED: b"A",
    pb.CHANGE_KIND_MODIFIED: b"C",
    pb.CHANGE_KIND_DELETED: b"D",
}
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

app = tree.group()

Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
    ),
]


@tree.command(app, "commit")
def commit(
    container: Container,
    reference: Annotated[str, typer.Argument(metavar="[NAME[:TAG]]", show_default=False)] = "",
    *,
    author: Annotated[
        str,
        typer.Option(
            "--author", "-a", metavar="TEXT", help="As in 'Ann <ann@example.org>'", show_default=False
        ),
    ] = "",
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="For the history", show_default=False)
    ] = "",
    changes: Changes = None,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", "-p", help="Let its processes stand still meanwhile")
    ] = True,
) -> int:
    """Make an image of what a container has changed, and print its id."""
    request = pb.CommitContainerRequest(
        container=container,
        reference=reference,
        author=author,
        message=message,
        changes=changes or [],
        no_pause=not pause,
    )
    print(hyperd.run(_commit(request)))
    return 0


async def _commit(request: pb.CommitContainerRequest) -> str:
    progress = ByteProgress(sys.stderr, "committed")
    done_bytes, image_id = 0, ""
    async with hyperd.connect() as client:
        try:
            async for response in client.containers.CommitContainer(request):
                if response.WhichOneof("kind") == "done_bytes":
                    progress.add(response.done_bytes - done_bytes)
                    done_bytes = response.done_bytes
                else:
                    image_id = response.image_id
        finally:
            progress.finish()
    if not image_id:
        raise CliError("the daemon ended the commit without an image", subject=request.container)
    return image_id


@tree.command(app, "diff")
def diff(container: Container) -> int:
    """List what a container has changed against its image: A added, C changed, D deleted."""
    on_terminal = sys.stdout.isatty()

    async def work() -> None:
        async with hyperd.connect() as client:
            async for response in client.containers.ListChanges(pb.ListChangesRequest(container=container)):
                for change in response.changes:
                    # Names are bytes: a pipe gets them as they are, a terminal without control characters.
                    path = _CONTROL.sub(b"?", change.path) if on_terminal else change.path
                    sys.stdout.buffer.write(LETTERS.get(change.kind, b"?") + b" " + path + b"\n")

    sys.stdout.flush()
    hyperd.run(work())
    sys.stdout.buffer.flush()
    return 0
