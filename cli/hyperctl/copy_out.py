# SPDX-License-Identifier: Apache-2.0
"""`hyper cp CONTAINER:PATH DEST`: the daemon's tar of one path -> files here, or standard output."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import pipes
from hyperctl.errors import CONFLICT, INVALID, CliError
from hyperctl.places import (
    STANDARD,
    Place,
    Target,
    clean,
    join_link,
    means_directory,
    settle,
    to_bytes,
)
from hyperctl.progress import ByteProgress
from hyperctl.render import printable, render_size
from hyperctl.unpack import Unpacker, require_written, tell_left

MAX_PATH_CELLS = 200


def copy_out(source: Place, target: str, *, archive: bool, follow: bool, quiet: bool) -> int:
    """The exit status: not 0 when something was left out, which is told.

    Raises CliError. Files are whole or not there; those that were written before a failure stay.
    """
    follow = follow or means_directory(source.path)
    if target == STANDARD:
        pipes.refuse_terminal_output("cp", "a tar", hint="name a place, or redirect")
        return hyperd.run(_to_standard_output(source, follow=follow))
    with hyperd.connect_blocking() as channel:
        from hyper.v1 import container_pb2_grpc

        call = container_pb2_grpc.ContainerServiceStub(channel).ReadPath(_request(source, follow=follow))
        try:
            return _receive(call, source, target, archive=archive, quiet=quiet)
        finally:
            call.cancel()


def _request(source: Place, *, follow: bool) -> pb.ReadPathRequest:
    return pb.ReadPathRequest(
        container=source.container, path=to_bytes(clean(source.path)), follow_link=follow
    )


def _receive(call: Any, source: Place, target: str, *, archive: bool, quiet: bool) -> int:
    first = next(call, None)
    if first is None or first.WhichOneof("kind") != "stat":
        raise CliError("the daemon said nothing of it", subject=str(source))
    is_directory = stat.S_ISDIR(first.stat.mode)
    if means_directory(source.path) and not is_directory:
        raise CliError("is not a directory", subject=str(source), exit_status=CONFLICT)
    directory, name = settle(source.path, source_is_directory=is_directory, target=_look(target))
    progress = ByteProgress(sys.stderr, "copied", quiet=quiet)
    received = 0

    def chunks() -> Iterator[bytes]:
        nonlocal received
        for response in call:
            received += len(response.data)
            progress.add(len(response.data))
            yield response.data

    unpacker = Unpacker(Path(directory), name, archive=archive)
    try:
        unpacker.unpack(chunks())
    finally:
        progress.finish()
    require_written(unpacker, str(source))
    if told := tell_left(unpacker.left):
        count = unpacker.left.count
        print(printable(f"hyper: {source}: {count} not copied\n{told}"), file=sys.stderr)
        return CONFLICT
    if not quiet:
        print(f"Successfully copied {render_size(received)} to {_absolute(target)}", file=sys.stderr)
    return 0


def _look(path: str) -> Target:
    """A link at the end is followed, also one to nothing: what it points to is written, not the link."""
    place = path
    try:
        for _ in range(40):  # as many links as the kernel would follow
            if not Path(place).is_symlink() or Path(place).is_dir():
                break
            place = join_link(place, os.readlink(place))  # noqa: PTH115 - as it is
        if place != path and path.endswith("/"):
            place += "/"
        return Target(place, Path(place).exists(), Path(place).is_dir())
    except OSError as error:
        brief = f"cannot be looked at: {error.strerror}"
        raise CliError(brief, subject=path, exit_status=INVALID) from error


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - as typed, links and all


async def _to_standard_output(source: Place, *, follow: bool) -> int:
    async with hyperd.connect() as client:
        call = client.containers.ReadPath(_request(source, follow=follow))
        await pipes.write_stream(call, 1, "standard output", "copied", quiet=True)
    return 0
