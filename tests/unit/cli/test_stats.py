# SPDX-License-Identifier: Apache-2.0
"""`hyper stats`, as Docker prints it."""

import json
import os
import pty
import signal

import pytest

from hyper.v1 import container_pb2 as pb
from hyperctl import stats_shape
from tests.unit.cli.conftest import DEADLINE_S


@pytest.fixture
def some(daemon):
    for name, state in (
        ("web", pb.CONTAINER_STATE_RUNNING),
        ("asleep", pb.CONTAINER_STATE_PAUSED),
        ("old", pb.CONTAINER_STATE_EXITED),
    ):
        daemon.add_container(pb.ContainerSpec(name=name, image="alpine")).state = state
    return {each.name: each.id[:12] for each in daemon.containers.values()}


def table(text):
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.splitlines()]


def test_stats_is_dockers_table(some, hyper):
    rows = table(hyper("stats", "--no-stream", "web").out)
    assert rows[0] == [
        *("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")
    ]
    assert rows[1:] == [
        [some["web"], "web", "25.00%", "64MiB / 512MiB", "12.50%", "1.5MB / 2kB", "7MB / 0B", "5"]
    ]


def test_stats_shows_what_runs_and_with_all_the_rest(some, hyper, daemon):
    shown = hyper("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}")
    assert shown.out.splitlines() == ["web 25.00% 64MiB / 512MiB 5", "asleep 25.00% -- / 512MiB --"]
    everything = hyper(
        "stats", "--no-stream", "-a", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}"
    )
    assert everything.out.splitlines()[2] == "old 0.00% 0B / 512MiB 0"
    assert hyper("stats", "--no-stream", "nobody").status == 3


def test_json_has_what_the_rates_have_dropped(some, hyper):
    (line,) = hyper("stats", "--no-stream", "--no-trunc", "--format", "json", "web").out.splitlines()
    document = json.loads(line)
    assert (document["RateDroppedIn"], document["RateDroppedOut"], document["HostMem"]) == ("3", "7", "96MiB")
    assert document["ID"].startswith(some["web"])
    assert len(document["ID"]) == 64


def test_the_stream_goes_on_until_it_is_interrupted(some, spawn):
    """On a terminal each in the place of the one before; the first one knows no rate yet."""
    ours, its = pty.openpty()
    child = spawn("stats", "web", stdout=its)
    os.close(its)
    shown = b""
    while shown.count(b"CONTAINER ID") < 3:
        shown += os.read(ours, 4096)
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_S) == 130
    os.close(ours)
    first, second = shown.split(b"\x1b[H")[1:3]
    assert b" --  " in first
    assert b"25.00%" in second
    assert b"\x1b[J" in first


def counted(cpu_ns, read_at_ns=0, *, running=True):
    return pb.ContainerStats(running=running, cpu_ns=cpu_ns, read_at_ns=read_at_ns)


@pytest.mark.parametrize(
    ("now", "before", "share"),
    [
        (counted(30, 10), counted(10, 0), 2.0),  # two CPUs
        (counted(30, 10), None, None),
        (counted(5, 10), counted(10, 0), None),  # another VM by now
        (counted(30, 10), counted(10, 10), None),
        (pb.ContainerStats(running=True, read_at_ns=10), counted(10, 0), None),
        (pb.ContainerStats(running=False), counted(10, 0), 0.0),
    ],
)
def test_the_share_of_a_cpu_is_what_was_used_in_between(now, before, share):
    assert stats_shape.cpu_share(now, before) == share


def test_what_is_not_known_is_not_shown_as_nothing():
    row = stats_shape.stats_row(pb.ContainerStats(running=True), None, truncate=True)
    assert (row["NetIO"], row["RateDroppedIn"], row["RateDroppedOut"]) == ("-- / --", "--", "--")
    assert stats_shape.stats_row(pb.ContainerStats(), None, truncate=True)["NetIO"] == "0B / 0B"
