# SPDX-License-Identifier: Apache-2.0
"""`hyper`: the tree of commands, and the one place where a failure becomes a message and an exit status."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hyperctl import VERSION, errors, tree
from hyperctl.errors import CliError, render_error
from hyperctl.tables import ROOT_TABLE

SIGPIPE_STATUS = 141
PASS_STATUS_THROUGH = frozenset({"run", "exec"})

EPILOG = """\b
Examples:
  hyper run --rm alpine echo hi          a command in a microVM of its own
  hyper run -it debian bash              a shell; leave it running with ctrl-p ctrl-q
  hyper run -d --name web -m 512m nginx  in the background
  hyper exec web nginx -T
  hyper logs -f web

`hyper COMMAND --help` says more of each."""


class RootGroup(tree.LazyGroup):
    table = ROOT_TABLE


app = tree.group(RootGroup)


def _show_version(*, wanted: bool) -> None:
    if wanted:
        print(f"hyper version {VERSION}")
        raise typer.Exit


@app.callback(epilog=EPILOG, no_args_is_help=True)
def root(
    host: Annotated[
        str,
        typer.Option("--host", "-H", metavar="ADDRESS", envvar="HYPER_HOST", help="Where hyperd listens"),
    ] = "unix:///run/hyper/hyperd.sock",
    *,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-v",
            help="Print the version and exit",
            is_eager=True,
            callback=lambda value: _show_version(wanted=value),
        ),
    ] = False,
) -> None:
    """Run OCI images, each in a virtual machine of its own."""
    from hyperctl import client

    client.host.set(host)


def main() -> None:
    """Entry point of the `hyper` program."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see entry.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _fill_closed_streams()
    status = run(sys.argv[1:])
    # What grpc and asyncio tear down at a regular exit takes longer than many a command; all is closed and flushed.
    os._exit(status)


def _fill_closed_streams() -> None:
    """A standard stream that was closed becomes /dev/null: else the next file opened would get what goes there."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def run(args: Sequence[str]) -> int:
    """Run one command line to its end, and say what went wrong. Never raises."""
    try:
        status = _invoke(list(args))
        sys.stdout.flush()
    except BrokenPipeError:
        return _quiet_after_broken_pipe()
    except KeyboardInterrupt:
        return 130
    except CliError as error:
        status = _report(error)
    except ImportError as error:  # of another version than what was set up
        status = _report(
            CliError(f"is not whole: {error}", subject="the installation", hint="run `make setup`")
        )
    except OSError as error:
        brief = error.strerror or str(error)
        status = _report(CliError(brief[:1].lower() + brief[1:], subject=str(error.filename or "")))
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        return _quiet_after_broken_pipe()
    return status


def _invoke(args: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        outcome: Any = command.main(args=args, prog_name="hyper", standalone_mode=False)
    except typer.TyperException as error:
        return _report_usage(error)
    except typer.Abort:
        return 130
    except SystemExit as error:  # Typer's own idea of a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    return outcome if isinstance(outcome, int) else 0


def _report(error: CliError) -> int:
    from hyperctl.render import print_error

    print_error(error)
    return error.exit_status


def _report_usage(error: typer.TyperException) -> int:
    """Typer's complaints in our own form; `hyper` alone shows the help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return errors.INVALID
    path = context.command_path if context is not None else "hyper"
    subject = path.removeprefix("hyper").strip()
    brief = error.format_message().strip().rstrip(".")
    print(
        render_error(brief[:1].lower() + brief[1:], subject=subject, hint=f"see `{path} --help`"),
        file=sys.stderr,
    )
    return errors.HYPER_FAILED if subject.split(" ")[-1] in PASS_STATUS_THROUGH else errors.INVALID


def _quiet_after_broken_pipe() -> int:
    """Whoever read our output has gone: end as SIGPIPE would have ended us, and say nothing."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    return SIGPIPE_STATUS


if __name__ == "__main__":
    main()
