# SPDX-License-Identifier: Apache-2.0
"""A real terminal: raw while the process has it, as it was on every way out."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from hyper.v1 import container_pb2 as pb
from tests.unit.cli.conftest import DEADLINE_S

# Makes the terminal the controlling one, so that a change of its size is signalled as to a shell's child.
LAUNCHER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""

    def start(self, environ, *args):
        argv = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "hyperctl.main", *args]
        self.child = subprocess.Popen(
            argv,
            env=environ,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        return self

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data):
        os.write(self.master, data)

    def expect(self, text):
        """Read until ``text`` has come; forget what was before it."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} after {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        _, _, self.seen = self.seen.partition(text)

    def wait(self):
        """The exit status, and what was written at the end."""
        deadline = time.monotonic() + DEADLINE_S
        while self.child.poll() is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.02)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.child.returncode

    @property
    def raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(DEADLINE_S)
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def terminal():
    it = Terminal()
    yield it
    it.close()


def test_a_shell_gets_the_size_the_keys_and_gives_its_status(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"size 80x24\r\n$ ")
    assert terminal.raw
    terminal.type(b"exit\r")
    assert terminal.wait() == 7
    assert terminal.restored


def test_a_change_of_size_is_passed_on(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"$ ")
    terminal.type(b"size\r")
    terminal.expect(b"size\r\n")
    terminal.resize(132, 50)
    terminal.expect(b"size 132x50\r\n$ ")
    terminal.type(b"exit\r")
    assert terminal.wait() == 7


def test_ctrl_c_is_a_key_like_any_other(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"$ ")
    terminal.type(b"\x03\x1a\x1c")
    terminal.expect(b"\x03\x1a\x1c")
    terminal.type(b"\rexit\r")
    assert terminal.wait() == 7


def test_the_detach_keys_leave_it_running_even_in_two_reads(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"$ ")
    terminal.type(b"a\x10")
    terminal.expect(b"a")
    terminal.type(b"\x11")
    assert terminal.wait() == 0
    assert terminal.seen == b"\r\n"
    assert terminal.restored
    [container] = daemon.containers.values()
    assert container.state == pb.CONTAINER_STATE_RUNNING


def test_other_detach_keys(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "--detach-keys", "x,y", "alpine")
    terminal.expect(b"$ ")
    terminal.type(b"\x10\x11xz")
    terminal.expect(b"\x10\x11xz")
    terminal.type(b"xy")
    assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_we_are_told_to_go(daemon, terminal, environ, number):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"$ ")
    terminal.child.send_signal(number)
    assert terminal.wait() == 128 + number
    assert terminal.restored


def test_the_terminal_is_restored_when_the_session_breaks(daemon, terminal, environ):
    terminal.start(environ, "run", "-it", "alpine")
    terminal.expect(b"$ ")
    daemon.disconnect()
    assert terminal.wait() == 125
    assert terminal.restored
    assert b"hyper: " in terminal.seen


def test_attaching_to_a_terminal_and_leaving_it(daemon, terminal, environ):
    container = daemon.add_container(pb.ContainerSpec(name="box", image="alpine", tty=True, stdin=True))
    terminal.start(environ, "start", "-ai", "box")
    terminal.expect(b"size 80x24\r\n$ ")
    assert terminal.raw
    terminal.type(b"\x10\x11")
    assert terminal.wait() == 0
    assert container.state == pb.CONTAINER_STATE_RUNNING


def test_a_run_without_t_keeps_the_terminal_as_it_is(daemon, terminal, environ):
    terminal.start(environ, "run", "-i", "alpine", "cat")
    terminal.type(b"line\n")
    terminal.expect(b"line\r\nline\r\n")
    assert terminal.restored
    terminal.type(b"\x04")
    assert terminal.wait() == 0


def test_ctrl_c_in_a_cooked_terminal_is_a_signal(daemon, terminal, environ):
    terminal.start(environ, "run", "alpine", "sleep")
    terminal.expect(b"ready")
    terminal.type(b"\x03")
    assert terminal.wait() == 130


def test_a_pull_draws_bars_and_leaves_a_clean_screen(daemon, terminal, environ):
    daemon.pull_pace_s = 0.02
    terminal.start(environ, "pull", "busybox")
    assert terminal.wait() == 0
    assert b"Using default tag: latest" in terminal.seen
    assert b"[=====" in terminal.seen
    assert terminal.seen.rstrip().endswith(b"docker.io/library/busybox:latest")
    assert terminal.seen.count(b"Pull complete") >= 3
    assert terminal.seen.count(b"Digest: ") == 1
