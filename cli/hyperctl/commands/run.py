# SPDX-License-Identifier: Apache-2.0
"""`hyper run` and `hyper create`."""

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, TypeVar

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, terminal, tree
from hyperctl.cidfile import CidFile, claim_cidfile
from hyperctl.client import Client
from hyperctl.detach import DEFAULT_KEYS, parse_detach_keys
from hyperctl.errors import EXIT_STATUS_OF_REASON, HYPER_FAILED, CliError, InvalidError
from hyperctl.outcome import exit_status
from hyperctl.session import Session, SessionSetup, SignalSender
from hyperctl.spec import ContainerFlags, build_spec, takes_container_flags

T = TypeVar("T")

IMAGE_NOT_FOUND = "image-not-found"

RUN_EPILOG = """\b
Examples:
  hyper run --rm alpine ls -l /          all after the image is the command
  hyper run -it --rm debian bash         ctrl-p ctrl-q leaves it running
  hyper run -d --name db -m 1g -e PASSWORD=x postgres
  tar c . | hyper run -i --rm alpine tar t
  hyper run --from-snapshot warm -n 3    three clones of a snapshot, in the background

The exit status is the process's own; 125: hyper failed, 126: not executable, 127: not found."""

app = tree.group()

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="Image to run", autocompletion=completion.images, show_default=False
    ),
]
ImageOrNone = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE", help="Image to run", autocompletion=completion.images, show_default=False
    ),
]
Args = Annotated[
    list[str] | None, typer.Argument(metavar="[COMMAND] [ARG...]", help="Instead of the image's command")
]


@tree.command(app, "run", passes_args=True, epilog=RUN_EPILOG)
@takes_container_flags
def run(
    image: ImageOrNone = None,
    args: Args = None,
    *,
    flags: ContainerFlags,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background and print the id")
    ] = False,
    sig_proxy: Annotated[
        bool, typer.Option("--sig-proxy/--no-sig-proxy", help="Pass signals on to the process")
    ] = True,
    detach_keys: Annotated[
        str, typer.Option("--detach-keys", metavar="KEYS", help="Keys that leave the process running")
    ] = DEFAULT_KEYS,
    from_snapshot: Annotated[
        str,
        typer.Option(
            "--from-snapshot",
            metavar="SNAPSHOT",
            help="Not from an image: clones of a snapshot, its processes alive",
            autocompletion=completion.snapshots,
            show_default=False,
        ),
    ] = "",
    count: Annotated[
        str, typer.Option("--count", "-n", metavar="NUMBER", help="How many, with --from-snapshot [1]")
    ] = "",
) -> int:
    """Create and start a container from an image or a snapshot, in a virtual machine of its own."""
    with hyper_failures():
        if from_snapshot:
            from hyperctl.from_snapshot import refuse_with_snapshot, run_clones

            refuse_with_snapshot(image, flags, sig_proxy=sig_proxy, detach_keys=detach_keys)
            return run_clones(from_snapshot, flags, count)
        if image is None:
            raise InvalidError("missing argument 'IMAGE'", subject="run", hint="see `hyper run --help`")
        if count:
            raise InvalidError("only goes with --from-snapshot", subject="--count")
        keys = parse_detach_keys(detach_keys)
        spec = build_spec(flags, image, args or [])
        require_terminal(tty=flags.tty, stdin=flags.interactive and not detach)
        with claim_cidfile(flags.cidfile) as cidfile:
            return hyperd.run(
                _run(spec, keys, pull=flags.pull, detach=detach, sig_proxy=sig_proxy, cidfile=cidfile)
            )


@tree.command(app, "create", passes_args=True)
@takes_container_flags
def create(image: Image, args: Args = None, *, flags: ContainerFlags) -> int:
    """Create a container without starting it, and print its id."""
    spec = build_spec(flags, image, args or [])
    with claim_cidfile(flags.cidfile) as cidfile:
        hyperd.run(_create(spec, pull=flags.pull, cidfile=cidfile))
    return 0


async def _create(spec: pb.ContainerSpec, *, pull: str, cidfile: CidFile) -> None:
    async with hyperd.connect() as client:

        async def attempt() -> None:
            response = await client.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
            for warning in response.warnings:
                print(f"WARNING: {warning}", file=sys.stderr)
            cidfile.write(response.container_id)
            print(response.container_id)

        await with_image(client, spec, pull, attempt)


async def _run(
    spec: pb.ContainerSpec, keys: bytes, *, pull: str, detach: bool, sig_proxy: bool, cidfile: CidFile
) -> int:
    started_as = pb.SessionStarted()

    def on_started(started: pb.SessionStarted) -> None:
        started_as.CopyFrom(started)
        for warning in started.warnings:
            print(f"WARNING: {warning}", file=sys.stderr)
        cidfile.write(started.container_id)
        if detach:
            print(started.container_id, flush=True)

    async with hyperd.connect() as client:

        async def attempt() -> int:
            setup = SessionSetup(
                first=pb.SessionRequest(run=pb.RunOptions(spec=spec, detach=detach)),
                stdin=spec.stdin and not detach,
                detach_keys=keys,
                forward_signals=sig_proxy and not detach,
                send_signal=SignalSender(client),
                on_started=on_started,
            )
            outcome = await Session(client.containers.RunContainer(), setup).run()
            if detach and outcome.exit is None and started_as.container_id:
                return 128 + outcome.signal if outcome.signal else 0
            return exit_status(outcome, subject=started_as.name or spec.name or spec.image)

        return await with_image(client, spec, pull, attempt)


async def with_image(
    client: Client, spec: pb.ContainerSpec, pull: str, attempt: Callable[[], Awaitable[T]]
) -> T:
    """Attempt it; when the image is not here (and --pull allows), pull it and attempt it once more."""
    if pull == "always":
        from hyperctl.progress import LayersProgress
        from hyperctl.pull import pull_images, pull_request

        request = pull_request(spec.image, platform=spec.platform)
        await pull_images(client, request, LayersProgress(sys.stderr))
    try:
        with hyperd.rpc_errors(client.address):
            return await attempt()
    except CliError as error:
        if error.reason != IMAGE_NOT_FOUND or pull != "missing":
            raise
    from hyperctl.pull import pull_missing

    await pull_missing(client, spec.image, spec.platform)
    return await attempt()


@contextlib.contextmanager
def hyper_failures() -> Iterator[None]:
    """Of `run` and `exec`: 125 whatever is not the process's own status, nor that it could not be executed."""
    try:
        yield
    except CliError as error:
        if error.reason not in EXIT_STATUS_OF_REASON:
            error.exit_status = HYPER_FAILED
        raise


def require_terminal(*, tty: bool, stdin: bool) -> None:
    if tty and stdin and not terminal.is_terminal(0):
        raise InvalidError("the input device is not a TTY", hint="leave -t away to use a pipe")
