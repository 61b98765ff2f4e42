# SPDX-License-Identifier: Apache-2.0
"""`hyper daemon` and `hyper doctor` with a hyperd of ours beside them."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.unit.cli.conftest import DEADLINE_S, ROOT

HYPER = f"""#!{sys.executable}
from hyperctl.main import main
main()
"""
HYPERD = f"""#!{sys.executable}
import asyncio, os, sys, threading
sys.path.insert(0, {str(ROOT)!r})
if "--doctor" in sys.argv:
    print(open(os.path.dirname(sys.argv[0]) + "/report").read())
    sys.exit(1)
print("hyperd says hello", sys.argv[1:], flush=True)
if "--die" in sys.argv:
    sys.exit("no kernel at /nowhere")
if "--hang" in sys.argv:
    threading.Event().wait()
from tests.fakes.daemon import serving
from tests.fakes.daemon_state import FakeDaemon
from hyper.v1 import container_pb2 as pb

async def main():
    fake = FakeDaemon(pid=os.getpid())
    fake.start_process(fake.add_container(pb.ContainerSpec(name="web")))
    async with serving(fake, os.environ["HYPER_HOST"].removeprefix("unix://")):
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(15, stop.set)
        await stop.wait()

asyncio.run(main())
"""


@pytest.fixture
def hyper(tmp_path, environ):
    """`hyper` installed beside a `hyperd`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("hyper", HYPER), ("hyperd", HYPERD)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*args):
        return subprocess.run(
            [programs / "hyper", *args],
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    yield run
    with contextlib.suppress(FileNotFoundError):
        for line in (tmp_path / "pids").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def remember(tmp_path, out):
    """So that a test that fails leaves no daemon behind."""
    with (tmp_path / "pids").open("a") as file:
        file.write(out.partition("(pid ")[2].partition(")")[0] + "\n")


def test_a_daemon_is_started_found_and_stopped(hyper, tmp_path):
    log = tmp_path / "log/hyperd.log"
    config = tmp_path / "hyperd.toml"
    started = hyper("daemon", "start", "--log", str(log), "--config", str(config))
    remember(tmp_path, started.stdout)
    assert (started.returncode, started.stderr) == (0, "")
    assert str(log) in started.stdout
    assert f"'--config', '{config}'" in log.read_text()

    status = hyper("daemon", "status")
    assert (status.returncode, "1 running" in status.stdout) == (0, True)
    assert "already" in hyper("daemon", "start", "--log", str(log)).stdout

    stopped = hyper("daemon", "stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert "1 sandbox keeps running" in stopped.stdout
    assert hyper("daemon", "status").returncode == 7
    again = hyper("daemon", "stop")
    assert (again.returncode, again.stdout) == (0, "hyperd is not running\n")


def test_a_daemon_that_dies_at_once_shows_its_log(hyper, tmp_path):
    log = tmp_path / "hyperd.log"
    log.write_text("of an earlier run\n")
    result = hyper("daemon", "start", "--log", str(log), "--", "--die")
    assert result.returncode == 7
    assert result.stderr == (
        "hyper: hyperd: ended at once with exit status 1\n"
        "  hyperd says hello ['--die']\n"
        "  no kernel at /nowhere\n"
        f"hint: its log is {log}; `hyper doctor` checks this host\n"
    )


def test_a_daemon_that_never_answers_is_ended(hyper, tmp_path):
    result = hyper("daemon", "start", "--log", str(tmp_path / "log"), "--timeout", "1", "--", "--hang")
    assert result.returncode == 6
    assert "does not answer after 1 s" in result.stderr
    assert "hyperd says hello" in result.stderr


def test_the_doctor_works_without_a_daemon(hyper, tmp_path):
    report = tmp_path / "bin/report"
    report.write_text(
        textwrap.dedent("""\
        {"checks": [{"name": "kvm", "level": "failed", "finding": "no /dev/kvm", "advice": "load kvm_intel"},
                    {"name": "qemu", "level": "ok", "finding": "10.0.2", "advice": ""}]}""")
    )
    result = hyper("doctor")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout == (
        "FAIL  kvm   no /dev/kvm\n"
        "            -> load kvm_intel\n"
        "ok    qemu  10.0.2\n\n"
        "Checked by `hyperd --doctor` (no daemon answers). 1 failed, 0 warnings: hyper will not work as it is.\n"
    )
    report.write_text("no JSON")
    result = hyper("doctor")
    assert (result.returncode, "cannot be read" in result.stderr, "no JSON" in result.stderr) == (
        1,
        True,
        True,
    )


def test_a_missing_hyperd_is_said(hyper, tmp_path, environ):
    environ["PATH"] = "/nonexistent"  # an installed hyperd would be found, and started
    (tmp_path / "bin/hyperd").unlink()
    result = hyper("daemon", "start")
    assert result.returncode == 7
    assert "hyperd: not found" in result.stderr
