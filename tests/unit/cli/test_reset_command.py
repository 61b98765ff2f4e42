# SPDX-License-Identifier: Apache-2.0
"""`hyper system reset`."""

import io

import grpc

from hyper.v1 import system_pb2
from tests.unit.cli.goldens import asked


def test_it_asks_first_and_tells_what_went(daemon, hyper, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert hyper("system", "reset").status == 1
    assert not asked(daemon, system_pb2.ResetSystemRequest)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    result = hyper("system", "reset")
    assert result.status == 0
    assert "Deleted Containers:\nweb\n" in result.out
    assert "Deleted Networks:\nback\n" in result.out
    assert "Released Floating IPs:\n203.0.113.1\n" in result.out
    assert "Security" not in result.out.partition("[y/N]")[2]
    assert hyper("system", "reset", "-f").status == 0
    assert [request.force for request in asked(daemon, system_pb2.ResetSystemRequest)] == [False, True]


def test_it_is_refused_while_containers_run(daemon, hyper, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    daemon.fail_next("ResetSystem", grpc.StatusCode.FAILED_PRECONDITION, "containers run: web")
    assert hyper("system", "reset").status == 4
