# SPDX-License-Identifier: Apache-2.0
"""The one gate for child processes of the command line: hyperd, systemctl, skopeo, credential helpers."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hyperctl import errors
from hyperctl.errors import CliError

UNIT = "hyperd.service"
UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
POLL_S = 0.05
CHECK_TIMEOUT_S = 120.0
SYSTEMCTL_TIMEOUT_S = 120.0
TERMINATE_S = 10.0
MAX_TAIL_BYTES = 4096
LOGIN_TIMEOUT_S = 60.0
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
NOT_KNOWN = b"credentials not found"  # docker-credential-helpers' word, whatever the helper
TAIL_LINES = 20


def find_hyperd() -> str:
    """Beside our own program, where they were installed together, else on PATH. Raises CliError."""
    own = Path(sys.argv[0])
    directories = (own.resolve().parent, own.parent)
    beside = [directory / "hyperd" for directory in directories]
    for candidate in beside:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which("hyperd")
    if found is None:
        raise CliError(
            "not found, neither beside this program nor on PATH",
            subject="hyperd",
            hint="install it with `make install`",
            exit_status=errors.UNAVAILABLE,
        )
    return found


def read_doctor_report() -> bytes:
    """What `hyperd --doctor` says in JSON, whatever its exit status."""
    return _run([find_hyperd(), "--doctor", "--format", "json"], timeout_s=CHECK_TIMEOUT_S)


def has_unit() -> bool:
    """systemd runs this machine and knows hyperd."""
    return Path("/run/systemd/system").is_dir() and any(
        Path(directory, UNIT).exists() for directory in UNIT_DIRECTORIES
    )


def is_run_by_systemd(pid: int) -> bool:
    try:
        return f"/{UNIT}" in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def systemctl(verb: str) -> None:
    """Raises CliError with what systemctl said."""
    _run(["systemctl", verb, UNIT], timeout_s=SYSTEMCTL_TIMEOUT_S, must_succeed=True)


def _run(argv: Sequence[str], *, timeout_s: float, must_succeed: bool = False) -> bytes:
    try:
        finished = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except OSError as error:
        raise CliError(
            f"cannot be executed: {error.strerror}", subject=argv[0], exit_status=errors.UNAVAILABLE
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CliError(
            f"no end after {timeout_s:g} s", subject=argv[0], exit_status=errors.TIMEOUT
        ) from error
    if (must_succeed and finished.returncode) or (finished.returncode and not finished.stdout):
        raise CliError(
            f"`{' '.join(argv[1:])}` ended with exit status {finished.returncode}",
            subject=argv[0],
            evidence=finished.stderr[-MAX_TAIL_BYTES:].decode(errors="replace"),
            exit_status=errors.UNAVAILABLE,
        )
    return finished.stdout


def ask_credential_helper(name: str, server: str, *, timeout_s: float) -> bytes | None:
    """What `docker-credential-NAME get` answers; None when it knows nothing of ``server``.

    Raises CliError, without a word of what it wrote: that may be the secret.
    """
    program = f"docker-credential-{name}"
    if not HELPER_NAME.fullmatch(name):
        raise CliError("is not the name of a credential helper", subject=program, exit_status=errors.INVALID)
    try:
        finished = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=timeout_s, check=False
        )
    except OSError as error:
        raise CliError(
            f"cannot be executed: {error.strerror}",
            subject=program,
            hint="install it, or take it out of the file of credentials",
            exit_status=errors.UNAVAILABLE,
        ) from error
    except subprocess.TimeoutExpired:
        raise CliError(
            f"no answer after {timeout_s:g} s", subject=program, exit_status=errors.TIMEOUT
        ) from None
    if finished.returncode:
        if NOT_KNOWN in finished.stdout + finished.stderr:
            return None
        raise CliError(
            f"ended with exit status {finished.returncode}",
            subject=program,
            hint=f"`echo {server} | {program} get` shows why",
            exit_status=errors.UNAVAILABLE,
        )
    return finished.stdout


def verify_login(registry: str, username: str, password: str, *, authfile: Path, tls_insecure: bool) -> None:
    """`skopeo login`: asks the registry, and keeps in ``authfile`` what it accepts. The password goes through a pipe.

    Raises CliError with what skopeo said.
    """
    argv = ["skopeo", "login", "--authfile", str(authfile), "--username", username, "--password-stdin"]
    if tls_insecure:
        argv.append("--tls-verify=false")
    try:
        finished = subprocess.run(
            [*argv, "--", registry],
            input=password.encode(),
            capture_output=True,
            timeout=LOGIN_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise CliError(
            f"cannot be executed: {error.strerror}",
            subject="skopeo",
            hint="install it: hyperd needs it, too",
            exit_status=errors.UNAVAILABLE,
        ) from error
    except subprocess.TimeoutExpired:
        raise CliError(
            f"no answer within {LOGIN_TIMEOUT_S:g} s", subject=registry, exit_status=errors.TIMEOUT
        ) from None
    if finished.returncode:
        said = finished.stderr[-MAX_TAIL_BYTES:].decode(errors="replace")
        refused = "unauthorized" in said.lower() or "invalid username/password" in said.lower()
        if password:
            said = said.replace(password, "***")
        raise CliError(
            "does not accept this login" if refused else "cannot be logged in to",
            subject=registry,
            evidence=said,
            exit_status=errors.DENIED if refused else errors.UNAVAILABLE,
        )


def clone_repository(url: str, target: Path, *, reference: str, quiet: bool) -> None:
    """One commit, by git, which tells its progress and why it failed; nothing of the repository is run.

    Raises CliError. As long as its server answers there is no deadline: whoever waits can end it.
    """
    git = shutil.which("git")
    if git is None:
        raise CliError("git is not installed", subject=url, hint="install it, or name a tar")
    argv = [git, "-c", "core.hooksPath=/dev/null", "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60"]
    argv += ["clone", "--depth=1", "--no-tags", *(["--quiet"] if quiet else [])]
    argv += ["--branch", reference] if reference else []
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    status = subprocess.run(
        [*argv, "--", url, str(target)], env=environment, stdin=subprocess.DEVNULL, check=False
    ).returncode
    if status:
        raise CliError(f"cannot be cloned: git ended with {_describe_status(status)}", subject=url)


def start_hyperd(argv: Sequence[str], *, log: Path, ready: Callable[[], bool], timeout_s: float) -> int:
    """Start hyperd in a session of its own and wait until ``ready``; returns its pid.

    Raises CliError with the end of the log when it ends first or the time is up; then nothing is left running.
    """
    with log.open("ab") as output:
        log_start = output.tell()
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise CliError(
                f"cannot be executed: {error.strerror}", subject=argv[0], exit_status=errors.UNAVAILABLE
            ) from error
    with _ended_unless_kept(child) as keep:
        for _ in range(max(1, round(timeout_s / POLL_S))):
            if ready():
                keep()
                return child.pid
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(POLL_S)
                raise CliError(
                    f"ended at once with {_describe_status(status)}",
                    subject="hyperd",
                    evidence=read_tail(log, log_start),
                    hint=f"its log is {log}; `hyper doctor` checks this host",
                    exit_status=errors.UNAVAILABLE,
                )
    raise CliError(
        f"does not answer after {timeout_s:g} s, and was ended again",
        subject="hyperd",
        evidence=read_tail(log, log_start),
        hint=f"its log is {log}; does it listen where --host says?",
        exit_status=errors.TIMEOUT,
    )


@contextlib.contextmanager
def _ended_unless_kept(child: "subprocess.Popen[bytes]") -> Iterator[Callable[[], None]]:
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True
        child.returncode = 0  # it goes on without us; Popen need not warn

    try:
        yield keep
    finally:
        if not kept and child.poll() is None:
            child.terminate()
            try:
                child.wait(TERMINATE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def end_process(pid: int, *, timeout_s: float) -> None:
    """SIGTERM, then wait for its end. Raises CliError; a process that has gone already is no error."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        ended = poller.poll(timeout_s * 1000)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CliError(
            "not allowed to end it",
            subject=f"hyperd (pid {pid})",
            hint="try as root",
            exit_status=errors.DENIED,
        ) from error
    finally:
        os.close(handle)
    if not ended:
        raise CliError(
            f"still there {timeout_s:g} s after SIGTERM",
            subject=f"hyperd (pid {pid})",
            exit_status=errors.TIMEOUT,
        )


def read_tail(log: Path, start: int = 0) -> str:
    """The last lines that were written after ``start``."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - MAX_TAIL_BYTES))
            text = file.read(MAX_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _describe_status(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
