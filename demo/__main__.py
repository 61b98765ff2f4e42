# SPDX-License-Identifier: Apache-2.0
"""Shows hyper at its main job: a real image, pulled from a registry, in a microVM of its own.

Uses the daemon that runs, if one does. Else everything happens in a network namespace and a directory of the demo's
own, with a daemon that is no business of systemd's, so that the host's network and /var/lib/hyper stay as they were.
"""

import contextlib
import os
import platform
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from demo import image

ROOT = Path(__file__).resolve().parent.parent
HYPER = str(Path(sys.executable).parent / "hyper")
ADDRESS = "HYPER_HOST"  # where the command looks for its daemon
SOCKET = Path(os.environ.get(ADDRESS, "/run/hyper/hyperd.sock").removeprefix("unix:").replace("//", "/"))
PREPARED_CACHE = Path("/var/lib/hyper/libvirt/cache")  # set-up filled it: QEMU need not be probed again
INSIDE = "HYPER_DEMO_INSIDE"
NAME = f"demo-{os.getpid()}"

T = TypeVar("T")


def main() -> None:
    if INSIDE not in os.environ:
        layout = _timed("make a Debian image with python3 in three layers", lambda: image.make(_suite()))
        inside = {**os.environ, INSIDE: str(layout)}
        argv = [sys.executable, "-m", "demo"]
        if not _answers():
            argv = [str(ROOT / "setup/private"), *argv]
        os.execve(argv[0], argv, inside)
    layout = Path(os.environ[INSIDE])
    with contextlib.ExitStack() as stack:
        stack.enter_context(_daemon())
        registry = stack.enter_context(_registry())
        reference = f"{registry}/demo:latest"
        _timed(
            f"push it to a registry at {registry}",
            lambda: _quiet(
                ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{reference}"]
            ),
        )
        stack.callback(_forget)
        _show(reference)
    print("demo: ok")


def _show(reference: str) -> None:
    _hyper("pull", reference)
    _say(f"host kernel  {platform.release()}")
    output = _hyper("run", "--rm", reference)
    _require(
        "guest kernel" in output and platform.release() not in output,
        "the guest has a kernel of its own",
        output,
    )
    _require("left: two" in output and "uid 1000" in output, "layers and user are as the image says", output)
    _hyper("run", "-d", "--name", NAME, reference, "count")
    _require(NAME in _hyper("ps"), "ps lists it", "")
    output = _hyper("exec", NAME, "sh", "-c", "echo exec in the same VM: $(hostname), $(nproc) CPU; id -un")
    _require("demo" in output, "exec runs as the image's user", output)
    _wait_for_output(NAME)
    _require("tick" in _hyper("logs", "--tail", "3", NAME), "logs show its output", "")
    _hyper("stop", "-t", "2", NAME)
    _hyper("ps", "-a")
    _hyper("rm", NAME)
    code = subprocess.run([HYPER, "run", "--rm", reference, "sh", "-c", "exit 42"], check=False).returncode
    _require(code == 42, "the exit status travels back: 42", str(code))
    _hyper("info")


def _hyper(*arguments: str) -> str:
    """Run a command as a user would, showing it, its output and its time."""
    print(f"\n$ hyper {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    finished = subprocess.run(
        [HYPER, *arguments], stdout=subprocess.PIPE, text=True, check=False, timeout=300
    )
    took = time.monotonic() - began
    sys.stdout.write(finished.stdout)
    if finished.returncode:
        raise SystemExit(f"demo: `hyper {' '.join(arguments)}` ended with status {finished.returncode}")
    print(f"  ({took:.2f} s)", flush=True)
    return finished.stdout


def _wait_for_output(name: str) -> None:
    """Follow the log to its first line: Python takes its time to start under emulation."""
    with subprocess.Popen([HYPER, "logs", "-f", name], stdout=subprocess.PIPE) as following:
        ready = following.stdout is not None and select.select([following.stdout.fileno()], [], [], 60)[0]
        following.terminate()
    _require(bool(ready), f"{name} writes something within a minute", "")


@contextlib.contextmanager
def _daemon() -> Iterator[None]:
    if _answers():
        _say("a daemon runs already: it is used")
        yield
        return
    home = Path(tempfile.mkdtemp(prefix="hyper-demo-", dir="/var/tmp"))  # short: sockets lie below it
    try:
        home.chmod(0o711)  # QEMU's user passes
        if PREPARED_CACHE.is_dir():
            shutil.copytree(PREPARED_CACHE, home / "state/libvirt/cache")
        os.environ[ADDRESS] = f"unix://{home}/run/hyperd.sock"
        _hyper(*start_arguments(home))
        try:
            yield
        finally:
            _hyper("daemon", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def start_arguments(home: Path) -> list[str]:
    """Arguments for hyperd keep `daemon start` from asking systemd, whose hyperd has the host's network."""
    flags = (f"daemon.state_dir={home}/state", f"daemon.run_dir={home}/run")
    return ["daemon", "start", "--log", f"{home}/log", "--", *(f"--set={flag}" for flag in flags)]


@contextlib.contextmanager
def _registry() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="hyper-demo-") as directory:
        settings = Path(directory) / "config.yml"
        settings.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}'}}\n"
        )
        with (Path(directory) / "log").open("w") as log:
            server = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
        try:
            _wait_for(port, server)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return
    raise SystemExit("demo: the registry did not come up")


def _answers() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(SOCKET))
        except OSError:
            return False
    return True


def _forget() -> None:
    subprocess.run(
        [HYPER, "rm", "-f", NAME], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def _suite() -> str:
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "trixie")


def _require(condition: bool, what: str, evidence: str) -> None:
    if not condition:
        raise SystemExit(f"demo: not so: {what}\n{evidence}")


def _timed(what: str, work: Callable[[], T]) -> T:
    print(f"{what} ...", end=" ", flush=True)
    began = time.monotonic()
    result = work()
    print(f"{time.monotonic() - began:.1f} s", flush=True)
    return result


def _quiet(argv: list[str]) -> None:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise SystemExit(
            f"demo: {argv[0]} ended with status {finished.returncode}:\n{finished.stderr[-2000:]}"
        )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
