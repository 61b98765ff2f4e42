# SPDX-License-Identifier: Apache-2.0
"""The prune commands ask first, take what nobody uses and nothing else."""

import errno
import io
from unittest.mock import Mock

import pytest

from hyper.v1 import container_pb2, image_pb2
from hyper.v1 import system_pb2 as system
from tests.fakes.daemon_state import ago
from tests.unit.cli.goldens import asked


@pytest.fixture
def answer(monkeypatch):
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def containers(daemon):
    made = {}
    for state in ("created", "running", "exited", "failed", "paused", "hibernated", "starting"):
        spec = container_pb2.ContainerSpec(name=state, image="alpine", labels={"state": state})
        container = daemon.add_container(spec)
        container.state = container_pb2.ContainerState.Value(f"CONTAINER_STATE_{state.upper()}")
        made[state] = container
        daemon.usage.containers.append(
            system.ContainerUsage(id=container.id, writable_bytes=1_000_000, log_bytes=500_000)
        )
    return made


def left(daemon):
    return {container.name for container in daemon.containers.values()}


def test_a_container_prune_takes_those_that_have_stopped(daemon, containers, hyper):
    result = hyper("container", "prune", "-f")
    gone = "\n".join(containers[state].id for state in ("failed", "exited", "created"))
    assert result.out == f"Deleted Containers:\n{gone}\n\nTotal reclaimed space: 4.5MB\n"
    assert left(daemon) == {"running", "paused", "hibernated", "starting"}
    assert hyper("container", "prune", "-f").out == "Total reclaimed space: 0B\n"


@pytest.mark.parametrize(
    ("filters", "gone"),
    [
        (("label=state=exited",), {"exited"}),
        (("label!=state=exited",), {"created", "failed"}),
        (("label=none",), set()),
        (("until=1h",), {"created"}),
        (("until=1h", "label=state=failed"), set()),
    ],
)
def test_filters_of_a_container_prune(daemon, containers, hyper, filters, gone):
    containers["created"].created_at.CopyFrom(ago(7200))
    assert hyper("container", "prune", "-f", *(f"--filter={text}" for text in filters)).status == 0
    assert left(daemon) == set(containers) - gone


@pytest.mark.parametrize("text", ["", "n\n", "yess\n", "\n"])
def test_nothing_is_removed_without_a_yes(daemon, containers, hyper, answer, text):
    for command in (("container", "prune"), ("image", "prune", "-a"), ("system", "prune")):
        answer(text)
        result = hyper(*command)
        assert result.out.endswith("Are you sure you want to continue? [y/N] ")
        assert (result.status, result.err) == (1, f"hyper: {' '.join(command[:2])}: has been cancelled\n")
    assert left(daemon) == set(containers)
    assert daemon.images


def closed():
    stdin = io.StringIO("y\n")
    stdin.close()
    return stdin


@pytest.mark.parametrize(
    "stdin",
    [
        None,
        closed(),
        Mock(readline=Mock(side_effect=OSError(errno.EIO, "Input/output error"))),
        io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"),
    ],
    ids=["none", "closed", "broken", "no text"],
)
def test_where_nobody_can_answer_the_answer_is_no(daemon, containers, hyper, monkeypatch, stdin):
    monkeypatch.setattr("sys.stdin", stdin)
    result = hyper("container", "prune")
    assert (result.status, result.err) == (1, "hyper: container prune: has been cancelled\n")
    assert left(daemon) == set(containers)


def test_an_image_prune_after_a_yes(daemon, hyper, answer):
    answer("y\n")
    image = daemon.images["docker.io/library/alpine:latest"]
    result = hyper(
        "image", "prune", "-a", "--filter", "until=2026-01-01T00:00:00Z", "--filter", "label!=keep"
    )
    assert result.out == (
        "WARNING! This will remove all images without at least one container associated to them.\n"
        "Are you sure you want to continue? [y/N] "
        f"Deleted Images:\nuntagged: alpine:latest\ndeleted: {image.id}\n\nTotal reclaimed space: 7.835MB\n"
    )
    [request] = asked(daemon, image_pb2.PruneImagesRequest)
    assert [(item.key, item.value) for item in request.filters] == [
        ("until", "2026-01-01T00:00:00Z"),
        ("label!", "keep"),
    ]


def test_a_system_prune_says_what_it_will_take(daemon, containers, hyper, answer):
    answer("y\n")
    result = hyper("system", "prune", "--filter", "label!=keep")
    assert result.out.startswith(
        "WARNING! This will remove:\n  - all stopped containers\n  - all dangling images\n\n"
        "  Items to be pruned will be filtered with:\n  - label!=keep\n\nAre you sure"
    )
    assert result.out.endswith("Total reclaimed space: 4.5MB\n")
    assert not asked(daemon, image_pb2.PruneImagesRequest)[0].all


def test_a_filter_that_cannot_be_is_refused_before_the_question(daemon, hyper):
    result = hyper("image", "prune", "--filter", "color=red")
    assert (result.status, result.out) == (2, "")
