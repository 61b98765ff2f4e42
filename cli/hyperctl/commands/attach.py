# SPDX-License-Identifier: Apache-2.0
"""`hyper exec` and `hyper attach`."""

import os
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, terminal, tree
from hyperctl.commands.run import hyper_failures, require_terminal
from hyperctl.detach import DEFAULT_KEYS, parse_detach_keys
from hyperctl.errors import InvalidError
from hyperctl.outcome import exit_status
from hyperctl.session import Session, SessionSetup, SignalSender

EXEC_EPILOG = """\b
Examples:
  hyper exec web cat /etc/os-release
  hyper exec -it web sh
  tar c . | hyper exec -i web tar x -C /tmp"""

app = tree.group()

Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER",
        help="Name or id",
        autocompletion=completion.running_containers,
        show_default=False,
    ),
]
DetachKeys = Annotated[
    str, typer.Option("--detach-keys", metavar="KEYS", help="Keys that leave the process running")
]


@tree.command(app, "exec", passes_args=True, epilog=EXEC_EPILOG)
def exec_(
    container: Container,
    args: Annotated[
        list[str], typer.Argument(metavar="COMMAND [ARG...]", help="What to run", show_default=False)
    ],
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Keep standard input open")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the process a terminal")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set an environment variable"),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option("--env-file", metavar="FILE", help="Read environment variables from a file"),
    ] = None,
    workdir: Annotated[
        str, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory", show_default=False)
    ] = "",
    user: Annotated[
        str,
        typer.Option("--user", "-u", metavar="USER[:GROUP]", help="User, by name or id", show_default=False),
    ] = "",
    privileged: Annotated[bool, typer.Option("--privileged", help="With all capabilities")] = False,
    detach_keys: DetachKeys = DEFAULT_KEYS,
) -> int:
    """Run a command in a running container."""
    with hyper_failures():
        keys = parse_detach_keys(detach_keys)
        require_terminal(tty=tty, stdin=interactive and not detach)
        size = terminal.find_size(1, 0) if tty else None
        try:
            exec_options = pb.ExecOptions(
                container=container,
                args=args,
                env=options.collect_env(env_file or [], env or [], os.environ),
                working_directory=workdir,
                user=user,
                tty=tty,
                stdin=interactive and not detach,
                privileged=privileged,
                detach=detach,
                terminal_size=pb.TerminalSize(columns=size[0], rows=size[1]) if size else None,
            )
        except UnicodeEncodeError as error:
            raise InvalidError("not UTF-8 text", subject=ascii(error.object)) from error
        return hyperd.run(_exec(exec_options, keys))


async def _exec(exec_options: pb.ExecOptions, keys: bytes) -> int:
    async with hyperd.connect() as client:
        setup = SessionSetup(
            first=pb.SessionRequest(exec=exec_options),
            stdin=exec_options.stdin,
            detach_keys=keys,
            send_signal=SignalSender(client),
        )
        outcome = await Session(client.containers.ExecContainer(), setup).run()
    if exec_options.detach and outcome.exit is None and not outcome.signal:
        return 0
    return exit_status(outcome, subject=exec_options.container)


@tree.command(app, "attach")
def attach(
    container: Container,
    *,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Do not pass our standard input on")] = False,
    sig_proxy: Annotated[
        bool, typer.Option("--sig-proxy/--no-sig-proxy", help="Pass signals on to the process")
    ] = True,
    detach_keys: DetachKeys = DEFAULT_KEYS,
) -> int:
    """Join the standard streams of a running container."""
    keys = parse_detach_keys(detach_keys)
    return hyperd.run(attach_session(container, keys, start=False, no_stdin=no_stdin, sig_proxy=sig_proxy))


async def attach_session(
    container: str, keys: bytes, *, start: bool, no_stdin: bool, sig_proxy: bool = True
) -> int:
    """Attach, and with ``start`` start it once attached, so that not a byte is missed."""
    size = terminal.find_size(1, 0)
    async with hyperd.connect() as client:
        inspected = await client.containers.InspectContainer(
            pb.InspectContainerRequest(container=container), timeout=hyperd.QUERY_TIMEOUT_S
        )
        spec = inspected.container.spec
        stdin = spec.stdin and not no_stdin
        attach_options = pb.AttachOptions(
            container=container,
            start=start,
            no_stdin=not stdin,
            terminal_size=pb.TerminalSize(columns=size[0], rows=size[1]) if size and spec.tty else None,
        )
        setup = SessionSetup(
            first=pb.SessionRequest(attach=attach_options),
            stdin=stdin,
            # As in Docker: who only looks in does not end the input for all.
            close_stdin=start,
            detach_keys=keys,
            forward_signals=sig_proxy,
            send_signal=SignalSender(client),
        )
        outcome = await Session(client.containers.AttachContainer(), setup).run()
    return exit_status(outcome, subject=container)
