# SPDX-License-Identifier: Apache-2.0
"""A container at a terminal: size, resize, Ctrl-C, detach and attach again."""

import signal
import subprocess

from tests.harness import Hyper, wait_until
from tests.terminal import terminal

BUSYBOX = "test.local/busybox"


def test_size_resize_and_typing_reach_the_program(host: Hyper):
    with terminal(host.argv("run", "--rm", "-it", BUSYBOX, "sh"), columns=101, rows=33) as screen:
        screen.wait_for(rb"# ")
        screen.type(b"stty size; tty; id -u\r")
        screen.wait_for(rb"33 101\r\n/dev/pts/0\r\n0\r\n")
        screen.resize(60, 20)
        screen.type(b"while [ \"$(stty size)\" != '20 60' ]; do :; done; echo re''sized\r")
        screen.wait_for(rb"resized")
        screen.type(b"exit 3\r")
        assert screen.wait_ended() == 3
        assert screen.modes_are_restored()


def test_ctrl_c_interrupts_the_program_not_the_session(host: Hyper):
    with terminal(host.argv("run", "--rm", "-it", BUSYBOX, "sh")) as screen:
        screen.wait_for(rb"# ")
        # Said by the program that is to be interrupted: a shell that is about to start it takes the signal for its own.
        screen.type(b"sh -c 'echo go\"\"ing; exec sleep 1000'\r")
        screen.wait_for(rb"going")
        screen.type(b"\x03")
        screen.type(b"echo still he''re; exit\r")
        screen.wait_for(rb"still here")
        screen.wait_ended()


def test_detaching_leaves_it_running_and_attaching_finds_it_again(host: Hyper, name: str):
    with terminal(host.argv("run", "-it", "--name", name, BUSYBOX, "sh")) as screen:
        screen.wait_for(rb"# ")
        screen.type(b"x=kept\r")
        screen.wait_for(rb"# ")
        screen.type(b"\x10\x11")
        assert screen.wait_ended() == 0
        assert screen.modes_are_restored()
    assert name in host.ok("ps")
    with terminal(host.argv("attach", name)) as screen:
        screen.type(b"echo $x; exit 4\r")
        screen.wait_for(rb"kept")
        assert screen.wait_ended() == 4
    wait_until(lambda: name not in host.ok("ps"), "it ended")


def test_ctrl_c_without_a_terminal_is_a_signal(host: Hyper, name: str):
    script = "trap 'echo caught; exit 5' INT; echo ready; while true; do sleep 0.1; done"
    argv = host.argv("run", "--name", name, BUSYBOX, "sh", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == b"caught\n"
        assert child.wait(30) == 5
