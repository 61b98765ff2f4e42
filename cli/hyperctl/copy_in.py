# SPDX-License-Identifier: Apache-2.0
"""`hyper cp SRC CONTAINER:PATH`: files of ours, or a tar from standard input -> the daemon."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import errors, pipes
from hyperctl.errors import CONFLICT, NOT_FOUND, CliError
from hyperctl.pack import pack
from hyperctl.places import STANDARD, Place, Target, clean, join_link, means_directory, settle, to_bytes
from hyperctl.progress import ByteProgress
from hyperctl.render import render_size


def copy_in(source: str, target: Place, *, keep_owner: bool, follow: bool, quiet: bool) -> int:
    """Raises CliError, also with what could not be read here."""
    from hyper.v1 import container_pb2_grpc

    is_directory = False
    if source == STANDARD:
        pipes.refuse_terminal_input("cp", "a tar", hint="name a file, or redirect")
    else:
        follow = follow or means_directory(source)
        is_directory = _require_source(source, follow=follow)
    progress = ByteProgress(sys.stderr, "copied", quiet=quiet)
    sent = Sent()
    with hyperd.connect_blocking() as channel:
        stub = container_pb2_grpc.ContainerServiceStub(channel)
        found = look(stub, target)
        if source == STANDARD:
            if not found.is_directory:
                raise CliError("must be a directory", subject=str(target), exit_status=CONFLICT)
            directory, reading = found.path, pipes.Input(0, "standard input")
            chunks = reading.chunks()
        else:
            directory, name = settle(source, source_is_directory=is_directory, target=found)
            chunks = pack(source, name, follow=follow)
        options = pb.WritePathOptions(
            container=target.container,
            path=to_bytes(directory),
            keep_owner=keep_owner,
            no_overwrite_dir_non_dir=True,
        )
        try:
            stub.WritePath(sent.requests(options, chunks, progress))
        except Exception:
            if sent.failure is not None:  # what we could not read says more than the half upload's end
                raise sent.failure from None
            raise
        finally:
            progress.finish()
    if not quiet:
        print(f"Successfully copied {render_size(sent.size_bytes)} to {target}", file=sys.stderr)
    return 0


class Sent:
    """An upload as grpc takes it: what fails while it is read would be swallowed there, and is kept here."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.failure: CliError | None = None

    def requests(
        self, options: pb.WritePathOptions, chunks: Iterator[bytes], progress: ByteProgress
    ) -> Iterator[pb.WritePathRequest]:
        yield pb.WritePathRequest(options=options)
        try:
            for data in chunks:
                yield pb.WritePathRequest(data=data)
                self.size_bytes += len(data)
                progress.add(len(data))
            yield pb.WritePathRequest(end=True)
        except CliError as error:
            self.failure = error
            raise
        except OSError as error:
            self.failure = CliError(f"cannot be read: {error.strerror or error}", subject="standard input")
            raise


def _require_source(path: str, *, follow: bool) -> bool:
    """Whether it is a directory. Raises CliError."""
    try:
        mode = Path(clean(path) if not follow else path).stat(follow_symlinks=follow).st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CliError(
            f"cannot be read: {error.strerror}",
            subject=path,
            exit_status=NOT_FOUND if missing else errors.BUG,
        ) from error
    if means_directory(path) and not stat.S_ISDIR(mode):
        raise CliError("is not a directory", subject=path, exit_status=CONFLICT)
    return stat.S_ISDIR(mode)


def look(stub: Any, target: Place) -> Target:
    """What is there; a link at the end is followed once, as Docker does."""
    found = _stat(stub, target.container, clean(target.path))
    path = target.path
    if found is not None and stat.S_ISLNK(found.mode):
        path = join_link(target.path, os.fsdecode(found.link_target))
        found = _stat(stub, target.container, clean(path), follow=True)
    if found is None:
        with hyperd.rpc_errors(hyperd.socket_path()):  # raises when it is the container that is not there
            stub.InspectContainer(
                pb.InspectContainerRequest(container=target.container), timeout=hyperd.QUERY_TIMEOUT_S
            )
        return Target(path, exists=False, is_directory=False)
    return Target(path, exists=True, is_directory=stat.S_ISDIR(found.mode))


def _stat(stub: Any, container: str, path: str, *, follow: bool = False) -> pb.PathStat | None:
    """None: there is no such path. Only the first message is taken."""
    call = stub.ReadPath(
        pb.ReadPathRequest(container=container, path=to_bytes(path), follow_link=follow),
        timeout=hyperd.QUERY_TIMEOUT_S,
    )
    try:
        with hyperd.rpc_errors(hyperd.socket_path()):
            first = next(call, None)
    except CliError as error:
        if error.exit_status != NOT_FOUND:
            raise
        return None
    finally:
        call.cancel()
    if first is None or first.WhichOneof("kind") != "stat":
        raise CliError("the daemon said nothing of it", subject=f"{container}:{path}")
    found: pb.PathStat = first.stat
    return found
