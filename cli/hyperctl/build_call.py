# SPDX-License-Identifier: Apache-2.0
"""One build, over one call: the context goes, what the engine says comes, questions for credentials and to the
user's ssh-agent are answered, also while nobody reads what is printed.
"""

import codecs
import queue
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TextIO

from hyper.v1 import build_pb2 as pb
from hyperctl import client as hyperd
from hyperctl.build_context import Context
from hyperctl.build_ssh import Agents
from hyperctl.credentials import find_credentials
from hyperctl.errors import BUG, CliError
from hyperctl.pipes import CHUNK_BYTES
from hyperctl.printing import Printer
from hyperctl.progress import LayersProgress
from hyperctl.render import printable


class Build:
    def __init__(
        self, context: Context, options: pb.BuildOptions, agents: Mapping[str, str], *, quiet: bool
    ) -> None:
        """``agents``: an id of ssh -> the socket of its agent."""
        self._context = context
        self._options = options
        self._answers: queue.SimpleQueue[pb.BuildImageRequest | None] = queue.SimpleQueue()
        self._agents = Agents(agents, self._answer_of_agent)
        self._lost: CliError | OSError | None = None
        self._hang_up_call: Callable[[], object] = lambda: None
        self._out = EngineOutput(sys.stderr, quiet=quiet)
        self._progress = LayersProgress(sys.stderr, quiet=quiet)

    def run(self) -> pb.BuiltImage:
        """Raises CliError, with status 1 for what the Dockerfile itself fails at."""
        printer = Printer(self._hang_up)
        try:
            image = self._ask(printer)
        except Exception:  # who interrupts does not wait for what is still to be read
            self._finish(printer)
            raise
        self._finish(printer)
        return image

    def _ask(self, printer: Printer) -> pb.BuiltImage:
        from hyper.v1 import build_pb2_grpc

        try:
            with hyperd.connect_blocking() as channel:
                call = build_pb2_grpc.BuildServiceStub(channel).BuildImage(self._requests())
                self._hang_up_call = call.cancel
                try:
                    for response in call:
                        if (end := self._take(response, printer)) is not None:
                            return end
                finally:
                    call.cancel()
                    self._answers.put(None)
                    self._agents.close()
        except CliError as error:
            if (
                self._lost is not None
            ):  # what could not be read, rather than what the daemon says to half a context
                raise self._reason(self._lost) from error
            raise
        raise CliError("the daemon ended the build without an image", subject="build")

    def _hang_up(self) -> None:
        self._hang_up_call()

    def _finish(self, printer: Printer) -> None:
        """Until all is read. Raises OSError when nobody reads it any more."""
        printer.put(self._out.finish)
        printer.put(self._progress.finish)
        printer.finish()

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

    def _take(self, response: pb.BuildImageResponse, printer: Printer) -> pb.BuiltImage | None:
        match response.WhichOneof("kind"):
            case "output":
                printer.put(partial(self._out.write, response.output), len(response.output))
            case "notice":
                printer.put(partial(self._progress.note, response.notice))
            case "layer":
                printer.put(partial(self._progress.show, response.layer))
            case "credentials_wanted":
                reference = response.credentials_wanted
                found = pb.BuildCredentials(reference=reference, credentials=find_credentials(reference))
                self._answers.put(pb.BuildImageRequest(credentials=found))
            case "ssh_agent":
                self._agents.take(response.ssh_agent)
            case "image":
                return response.image
            case "failure":
                printer.put(self._out.fail)
                raise CliError(
                    "the build failed",
                    subject=f"status {response.failure.code}",
                    exit_status=BUG,
                )
        return None

    def _answer_of_agent(self, answer: pb.SshAgentMessage) -> None:
        self._answers.put(pb.BuildImageRequest(ssh_agent=answer))

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
