# SPDX-License-Identifier: Apache-2.0
"""Pipes: whole, bounded, and no noise when one end goes."""

import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyper.v1 import container_pb2 as pb
from tests.unit.cli.conftest import DEADLINE_S

MEBI = 1 << 20
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def web(daemon):
    container = daemon.add_container(pb.ContainerSpec(name="web", image="alpine", args=["sleep"]))
    daemon.start_process(container)
    return container


def test_all_of_a_large_input_arrives(daemon, web, spawn):
    data = os.urandom(MEBI) * 40
    child = spawn("exec", "-i", "web", "sink", **PIPES)
    out, err = child.communicate(data, timeout=DEADLINE_S)
    assert (child.returncode, err) == (0, b"")
    assert out.decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}\n"


def test_all_of_a_large_output_arrives(daemon, web, spawn):
    child = spawn("exec", "web", "flood", str(40 * MEBI + 1), **PIPES)
    out, err = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, err, len(out)) == (0, b"", 40 * MEBI + 1)
    assert (
        hashlib.sha256(out[:-1]).digest() == hashlib.sha256(bytes(range(256)) * (40 * MEBI // 256)).digest()
    )


def test_both_directions_at_once(daemon, web, spawn):
    data = os.urandom(MEBI) * 8
    child = spawn("exec", "-i", "web", "cat", **PIPES)
    out, _ = child.communicate(data, timeout=DEADLINE_S)
    assert out == data


def test_input_that_nobody_reads_is_not_read_either(daemon, web, spawn):
    child = spawn("exec", "-i", "web", "sleep", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    assert fill(child.stdin.fileno()) < 32 * MEBI


def fill(fd):
    """Write until nothing has been taken for half a second; how much was."""
    os.set_blocking(fd, False)
    accepted, deadline = 0, time.monotonic() + DEADLINE_S
    while select.select([], [fd], [], 0.5)[1]:
        assert time.monotonic() < deadline
        accepted += os.write(fd, bytes(MEBI))
    return accepted


def test_output_that_nobody_reads_is_not_fetched(daemon, web, spawn):
    child = spawn("exec", "web", "flood", str(200 * MEBI), **PIPES)
    child.stdout.read(1)
    peak, deadline = _rss_mib(child.pid), time.monotonic() + 1
    while time.monotonic() < deadline:
        peak = max(peak, _rss_mib(child.pid))
    assert peak < 150
    rest = 1
    while data := child.stdout.read(MEBI):
        rest += len(data)
    assert rest == 200 * MEBI


def _rss_mib(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MEBI


def test_a_reader_who_goes_ends_us_quietly(daemon, web, spawn):
    child = spawn("exec", "web", "flood", str(50 * MEBI), **PIPES)
    child.stdout.read(10)
    child.stdout.close()
    assert child.wait(DEADLINE_S) == 141
    assert child.stderr.read() == b""
    assert web.state == pb.CONTAINER_STATE_RUNNING


def test_a_listing_into_a_closed_pipe_ends_quietly(daemon, spawn):
    for number in range(2000):
        daemon.add_container(pb.ContainerSpec(name=f"c{number}", image="alpine"))
    child = spawn("ps", "-a", **PIPES)
    child.stdout.close()
    assert child.wait(DEADLINE_S) == 141
    assert child.stderr.read() == b""


def test_input_may_be_a_file_or_nothing_or_closed(daemon, web, spawn, tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"from a file")
    with file.open() as stdin:
        child = spawn("exec", "-i", "web", "cat", stdin=stdin, stdout=subprocess.PIPE)
        assert child.communicate(timeout=DEADLINE_S)[0] == b"from a file"
    child = spawn("exec", "-i", "web", "cat", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert child.communicate(timeout=DEADLINE_S)[0] == b""
    assert child.returncode == 0


def test_input_goes_nowhere_without_i(daemon, web, spawn):
    child = spawn("exec", "web", "echo", "hi", **PIPES)
    out, _ = child.communicate(b"not read", timeout=DEADLINE_S)
    assert out == b"hi\n"
    [options] = [request for request in daemon.requests if isinstance(request, pb.ExecOptions)]
    assert not options.stdin


def test_standard_error_stays_apart(daemon, web, spawn):
    child = spawn("exec", "web", "complain", "4", **PIPES)
    assert child.communicate(timeout=DEADLINE_S) == (b"to stdout\n", b"to stderr\n")
    assert child.returncode == 4


def test_the_end_of_an_attached_input_is_not_the_end_of_the_process(daemon, spawn):
    container = daemon.add_container(pb.ContainerSpec(name="c", image="alpine", args=["cat"], stdin=True))
    daemon.start_process(container)
    child = spawn("attach", "c", **PIPES)
    child.stdin.write(b"line\n")
    child.stdin.close()
    assert child.stdout.readline() == b"line\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130


def test_an_input_that_the_container_does_not_take_is_not_sent(daemon, web, spawn):
    child = spawn("attach", "web", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    child.stdin.write(b"nobody takes this")
    child.stdin.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_S) == 143
    [request] = [request for request in daemon.requests if isinstance(request, pb.AttachOptions)]
    assert request.no_stdin


def test_starting_attached_passes_the_end_of_the_input_on(daemon, spawn):
    daemon.add_container(pb.ContainerSpec(name="c", image="alpine", args=["cat"], stdin=True))
    child = spawn("start", "-ai", "c", **PIPES)
    assert child.communicate(b"all of it", timeout=DEADLINE_S)[0] == b"all of it"
    assert child.returncode == 0


def test_a_pull_can_be_interrupted(daemon, spawn):
    daemon.pull_pace_s = 0.1
    child = spawn("run", "busybox", **PIPES)
    while b"Downloading" not in child.stderr.readline():
        pass
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130
    assert b"Traceback" not in child.stderr.read()
    assert not daemon.containers


def test_an_output_that_was_closed_from_the_start_is_no_error(daemon, web, environ):
    command = f"exec {sys.executable} -m hyperctl.main exec web complain 3 >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environ, timeout=DEADLINE_S, check=False).returncode == 3


def test_an_interrupt_while_it_is_loaded_is_silent(environ, tmp_path):
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "typer.py").write_text(slow)
    path = os.pathsep.join((str(tmp_path), environ.get("PYTHONPATH", "")))
    finished = subprocess.run(
        [sys.executable, "-c", "import hyperctl.entry"],
        env={**environ, "PYTHONPATH": path},
        timeout=DEADLINE_S,
        capture_output=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (-signal.SIGINT, b"")


def test_a_full_disk_is_said(daemon, web, spawn):
    with Path("/dev/full").open("wb") as full:
        child = spawn("exec", "web", "echo", "hi", stdout=full, stderr=subprocess.PIPE)
        assert child.wait(DEADLINE_S) == 125
    assert b"No space left on device" in child.stderr.read()


def test_signals_reach_the_process_of_a_run(daemon, spawn):
    child = spawn("run", "--rm", "alpine", "signals", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGUSR1)
    assert child.stdout.readline() == b"signal 10\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == b"signal 2\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_S) == 3


def test_signals_reach_the_process_of_an_exec(daemon, web, spawn):
    child = spawn("exec", "web", "sleep", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_S) == 143


def test_a_signal_does_not_wait_behind_input(daemon, spawn):
    child = spawn("run", "-i", "alpine", "sleep", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    fill(child.stdin.fileno())
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130


def test_a_signal_to_an_exec_does_not_wait_behind_input_either(daemon, web, spawn):
    child = spawn("exec", "-i", "web", "sleep", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    fill(child.stdin.fileno())
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130


def test_no_sig_proxy_leaves_the_process_running(daemon, spawn):
    child = spawn("run", "--sig-proxy=false", "alpine", "sleep", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130
    [container] = daemon.containers.values()
    assert container.state == pb.CONTAINER_STATE_RUNNING


def test_three_interrupts_end_us_whatever_happens(daemon, spawn):
    child = spawn("run", "alpine", "signals", **PIPES)
    assert child.stdout.readline() == b"ready\n"
    for number in range(3):
        child.send_signal(signal.SIGINT)
        if number < 2:
            assert child.stdout.readline() == b"signal 2\n"
    assert child.wait(DEADLINE_S) == 130
    assert b"3 interrupts" in child.stderr.read()
