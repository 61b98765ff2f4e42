# SPDX-License-Identifier: Apache-2.0
"""`hyper daemon start|stop|status`: hyperd on hosts without systemd, and the way to systemctl on the others."""

import os
import socket
import struct
from pathlib import Path
from typing import Annotated

import typer

from hyper.v1 import system_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import errors, options, process, tree
from hyperctl.errors import CliError

SYSTEM_LOG = Path("/var/log/hyper/hyperd.log")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
ANSWER_S = 2.0
PATIENCE_S = 10.0

app = tree.group(summary="Start, stop and look at the daemon.")

Timeout = Annotated[str, typer.Option("--timeout", metavar="SECONDS", help="How long to wait")]


@tree.command(app, "start")
def start(
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- HYPERD_ARG...]", help="Passed on to hyperd")
    ] = None,
    *,
    config: Annotated[
        str, typer.Option("--config", metavar="FILE", help="hyperd's configuration", show_default=False)
    ] = "",
    log: Annotated[
        str,
        typer.Option(
            "--log",
            metavar="FILE",
            help=f"[{SYSTEM_LOG}, or under ~/.local/state without the right to it]",
            show_default=False,
        ),
    ] = "",
    timeout: Timeout = str(START_TIMEOUT_S),
) -> int:
    """Start hyperd in the background and wait until it answers."""
    timeout_s = options.parse_integer("--timeout", timeout, minimum=1)
    if (running := find_daemon()) is not None:
        print(f"hyperd is running already (pid {running.pid})")
        return 0
    if process.has_unit() and not (config or log or args):
        process.systemctl("start")
        print("hyperd started by systemd; its log: journalctl -u hyperd")
        return 0
    argv = [
        process.find_hyperd(),
        *(["--config", str(Path(config).absolute())] if config else []),
        *(args or []),
    ]
    log_file = choose_log(log)
    pid = process.start_hyperd(argv, log=log_file, ready=is_answering, timeout_s=timeout_s)
    print(f"hyperd started (pid {pid}); its log: {log_file}")
    return 0


@tree.command(app, "stop")
def stop(*, timeout: Timeout = str(STOP_TIMEOUT_S)) -> int:
    """Stop hyperd. Sandboxes keep running; the next hyperd adopts them."""
    timeout_s = options.parse_integer("--timeout", timeout, minimum=1)
    running = find_daemon(patience_s=PATIENCE_S)
    if running is None:
        print("hyperd is not running")
        return 0
    if process.is_run_by_systemd(running.pid):
        process.systemctl("stop")
    else:
        require_same_process(running.pid)
        process.end_process(running.pid, timeout_s=timeout_s)
    print(f"hyperd (pid {running.pid}) stopped")
    if running.containers_running:
        count = running.containers_running
        print(
            f"{count} sandbox{'es keep' if count > 1 else ' keeps'} running, to be adopted at the next start"
        )
    return 0


@tree.command(app, "status")
def status() -> int:
    """Say whether hyperd answers; the exit status is 7 when it does not."""
    running = find_daemon(patience_s=PATIENCE_S)
    if running is None:
        print(f"hyperd is not running (nothing answers at {hyperd.socket_path()})")
        return errors.UNAVAILABLE
    keeper = " under systemd" if process.is_run_by_systemd(running.pid) else ""
    print(f"hyperd {running.version} is running{keeper} (pid {running.pid})")
    print(f"  socket      {hyperd.socket_path()}")
    print(f"  state       {running.state_dir}")
    print(f"  containers  {running.containers_running} running, {running.containers_stopped} stopped")
    return 0


def find_daemon(*, patience_s: float = ANSWER_S) -> pb.GetInfoResponse | None:
    """None when nobody listens. Raises CliError when somebody does and will not answer."""
    try:
        return hyperd.ask(lambda client: client.system.GetInfo(pb.GetInfoRequest(), timeout=patience_s))
    except CliError as error:
        if error.exit_status == errors.UNAVAILABLE and error.subject == hyperd.socket_path():
            return None
        raise


def is_answering() -> bool:
    """Cheap while there is no socket."""
    if not Path(hyperd.socket_path()).exists():
        return False
    try:
        return find_daemon() is not None
    except CliError as error:
        if error.exit_status in {errors.TIMEOUT, errors.UNAVAILABLE}:
            return False
        raise


def choose_log(wanted: str) -> Path:
    """Raises CliError when no place for a log can be written."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state", "hyper/hyperd.log")
    candidates = [Path(wanted).absolute()] if wanted else [SYSTEM_LOG, home]
    failure: OSError | None = None
    for candidate in candidates:
        try:
            candidate.parent.mkdir(parents=True, exist_ok=True)
            candidate.touch(mode=0o640)
        except OSError as error:
            failure = error
        else:
            return candidate
    raise CliError(
        f"no log can be written: {failure.strerror if failure else ''}", subject=str(candidates[-1])
    ) from failure


def require_same_process(pid: int) -> None:
    """The pid that hyperd gives is the one that listens, seen from our own PID namespace. Raises CliError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(hyperd.socket_path())
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return  # it has just gone
    listener = struct.unpack("3i", credentials)[0]
    if listener != pid:
        raise CliError(
            f"says that its pid is {pid}, which is not the process that listens",
            subject="hyperd",
            hint="does it run in another PID namespace? stop it from there",
            exit_status=errors.CONFLICT,
        )
