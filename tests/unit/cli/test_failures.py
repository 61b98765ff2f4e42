# SPDX-License-Identifier: Apache-2.0
"""What goes wrong has a message and a status."""

import os
import stat
import sys
from pathlib import Path

import grpc
import pytest

from hyperctl.errors import EXIT_STATUS


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_exit_status(daemon, hyper, code):
    daemon.fail_next(
        "ListContainers", code, "it failed", subject="thing", evidence="line 1\nline 2", hint="do so"
    )
    result = hyper("ps")
    assert result.status == EXIT_STATUS.get(code.name, 1)
    assert result.err == "hyper: thing: it failed\n  line 1\n  line 2\nhint: do so\n"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("command-not-found", 127), ("command-not-executable", 126), ("", 2), ("", 125)],
)
def test_what_could_not_be_executed_has_a_shells_status(daemon, hyper, reason, status):
    call, arguments = (
        ("RunOptions", ("run", "-d", "alpine", "x")) if status != 2 else ("StartContainer", ("start", "web"))
    )
    daemon.fail_next(
        call, grpc.StatusCode.INVALID_ARGUMENT, "the process could not be started", reason=reason
    )
    assert hyper(*arguments).status == status


def test_a_bug_names_its_id(daemon, hyper):
    daemon.fail_next("ListContainers", grpc.StatusCode.INTERNAL, "internal error", bug_id="b7f3")
    result = hyper("ps")
    assert (result.status, "b7f3" in result.err) == (1, True)


def test_an_installation_that_is_not_whole_is_said_in_a_line(daemon, hyper, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperctl.commands.listing", None)
    result = hyper("ps")
    assert (result.status, result.err.count("\n")) == (1, 2)
    assert "hint: run `make setup`" in result.err


def test_what_the_system_refuses_is_said_in_a_line(daemon, hyper, monkeypatch):
    def refused(_):
        raise PermissionError(13, "Permission denied", "/root/secret")

    monkeypatch.setattr("hyperctl.main._invoke", refused)
    result = hyper("ps")
    assert (result.status, result.err) == (1, "hyper: /root/secret: permission denied\n")


def test_no_daemon_is_said_with_how_to_start_one(hyper, socket_path):
    result = hyper("ps")
    assert result.status == 7
    assert result.err == (
        f"hyper: {socket_path}: no daemon answers\n"
        "hint: start it with `hyper daemon start`, or with `systemctl start hyperd`\n"
    )
    assert hyper("run", "alpine").status == 125
    assert hyper("rm", "a", "b").err.count("no daemon") == 1


def test_version_without_a_daemon_shows_our_side(hyper):
    result = hyper("version")
    assert result.status == 7
    assert result.out.startswith("Client:")
    assert "no daemon answers" in result.err
    assert hyper("version", "-f", "{{.Client.Version}}").out == "0.1.0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become somebody else")
def test_a_socket_of_others_says_which_group(daemon, hyper, socket_path):
    Path(socket_path).chmod(stat.S_IRUSR | stat.S_IWUSR)
    for parent in list(Path(socket_path).parents)[:3]:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        result = hyper("ps")
    finally:
        os.seteuid(0)
    assert (result.status, "group `hyper`" in result.err) == (8, True)


@pytest.mark.parametrize("address", ["tcp://1.2.3.4:5", "http://x", "relative.sock", ""])
def test_only_unix_sockets_are_addresses(hyper, address):
    result = hyper("--host", address, "ps")
    assert result.status in {2, 7}
    assert "Traceback" not in result.err
