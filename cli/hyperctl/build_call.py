# SPDX-License-Identifier: Apache-2.0
"""One build, over one call: the context goes, what the engine says comes, questions for credentials are answered."""

import codecs
import queue
import sys
from collections.abc import Iterator
from typing import TextIO

from hyper.v1 import build_pb2 as pb
from hyperctl import client as hyperd
from hyperctl.build_context import Context
from hyperctl.credentials import find_credentials
from hyperctl.errors import BUG, CliError
from hyperctl.pipes import CHUNK_BYTES
from hyperctl.progress import LayersProgress
from hyperctl.render import printable


class Build:
    def __init__(self, context: Context, options: pb.BuildOptions, *, quiet: bool) -> None:
        self._context = context
        self._options = options
        self._answers: queue.SimpleQueue[pb.BuildImageRequest | None] = queue.SimpleQueue()
        self._lost: CliError | OSError | None = None
        self._out = EngineOutput(sys.stderr, quiet=quiet)
        self._progress = LayersProgress(sys.stderr, quiet=quiet)

    def run(self) -> pb.BuiltImage:
        """Raises CliError, with status 1 for what the Dockerfile itself fails at."""
        from hyper.v1 import build_pb2_grpc

        try:
            with hyperd.connect_blocking() as channel:
                call = build_pb2_grpc.BuildServiceStub(channel).BuildImage(self._requests())
                try:
                    for response in call:
                        if (end := self._take(response)) is not None:
                            return end
                finally:
                    call.cancel()
                    self._answers.put(None)
                    self._out.finish()
                    self._progress.finish()
        except CliError as error:
            if (
                self._lost is not None
            ):  # what could not be read, rather than what the daemon says to half a context
                raise self._reason(self._lost) from error
            raise
        raise CliError("the daemon ended the build without an image", subject="build")

    def _requests(self) -> Iterator[pb.BuildImageRequest]:
        """gRPC swallows what fails in here, so it is kept."""
        yield pb.BuildImageRequest(options=self._options)
        try:
            for data in _gathered(self._context.pieces):
                yield pb.BuildImageRequest(data=data)
        except (CliError, OSError, EOFError, ValueError) as error:
            self._lost = error if isinstance(error, CliError | OSError) else CliError(str(error))
            raise
        yield pb.BuildImageRequest(context_end=pb.ContextEnd())
        while (answer := self._answers.get()) is not None:
            yield answer

    def _take(self, response: pb.BuildImageResponse) -> pb.BuiltImage | None:
        match response.WhichOneof("kind"):
            case "output":
                self._out.write(response.output)
            case "notice":
                self._progress.note(response.notice)
            case "layer":
                self._progress.show(response.layer)
            case "credentials_wanted":
                reference = response.credentials_wanted
                found = pb.BuildCredentials(reference=reference, credentials=find_credentials(reference))
                self._answers.put(pb.BuildImageRequest(credentials=found))
            case "image":
                return response.image
            case "failure":
                self._out.fail()
                raise CliError(
                    "the build failed",
                    subject=f"status {response.failure.code}",
                    exit_status=BUG,
                )
        return None

    def _reason(self, lost: CliError | OSError) -> CliError:
        if isinstance(lost, CliError):
            return lost
        return CliError(f"cannot be read: {lost.strerror or lost}", subject="the context")


class EngineOutput:
    """On a terminal without control characters but the ends of lines. A quiet build is heard when it fails."""

    MAX_KEPT = 256 << 10

    def __init__(self, out: TextIO, *, quiet: bool) -> None:
        self._out = out
        self._quiet = quiet
        self._kept = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_terminal = out.isatty()

    def write(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if self._is_terminal:
            text = "\n".join(printable(line) for line in text.replace("\r\n", "\n").split("\n"))
        if self._quiet:
            self._kept = (self._kept + text)[-self.MAX_KEPT :]
        else:
            self._out.write(text)
            self._out.flush()

    def fail(self) -> None:
        self._out.write(self._kept)
        self._kept = ""

    def finish(self) -> None:
        self._out.flush()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Messages of 1 MiB: a tar comes in headers of half a KiB."""
    kept = bytearray()
    for piece in pieces:
        kept += piece
        while len(kept) >= CHUNK_BYTES:
            yield bytes(kept[:CHUNK_BYTES])
            del kept[:CHUNK_BYTES]
    if kept:
        yield bytes(kept)
