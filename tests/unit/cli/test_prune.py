# SPDX-License-Identifier: Apache-2.0
"""The prune commands ask first, take what nobody uses and nothing else."""

import errno
import io
from unittest.mock import Mock

import grpc
import pytest

from hyper.v1 import container_pb2, image_pb2, network_pb2, volume_pb2
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
        "WARNING! This will remove:\n  - all stopped containers\n"
        "  - all networks not used by at least one container\n  - all dangling images\n\n"
        "  Items to be pruned will be filtered with:\n  - label!=keep\n\nAre you sure"
    )
    assert result.out.endswith("Total reclaimed space: 4.5MB\n")
    assert not asked(daemon, image_pb2.PruneImagesRequest)[0].all


def test_a_filter_that_cannot_be_is_refused_before_the_question(daemon, hyper):
    result = hyper("image", "prune", "--filter", "color=red")
    assert (result.status, result.out) == (2, "")


@pytest.fixture
def networks(daemon, hyper):
    """A built-in one, one that a container is on, and two that nobody is on."""
    daemon.networks["bridge"] = network_pb2.Network(id="b" * 64, spec=network_pb2.NetworkSpec(name="bridge"))
    for name, labels in (("busy", ()), ("old", ("--label", "team=web")), ("idle", ())):
        hyper("network", "create", *labels, name)
    daemon.networks["busy"].members.append(network_pb2.NetworkMember(name="web"))
    daemon.networks["old"].created_at.CopyFrom(ago(7200))
    return daemon.networks


def test_a_network_prune_says_what_has_gone(networks, hyper):
    assert hyper("network", "prune", "-f").out == "Deleted Networks:\nold\nidle\n\n"
    assert set(networks) == {"bridge", "busy"}
    assert hyper("network", "prune", "-f").out == ""


@pytest.mark.parametrize(
    ("filters", "gone"),
    [
        (("until=1h",), {"old"}),
        (("label=team",), {"old"}),
        (("label=team=db",), set()),
        (("label!=team=web",), {"idle"}),
        (("label!=none",), {"old", "idle"}),
    ],
)
def test_filters_of_a_network_prune(networks, hyper, filters, gone):
    assert hyper("network", "prune", "-f", *(f"--filter={text}" for text in filters)).status == 0
    assert set(networks) == {"bridge", "busy", "old", "idle"} - gone


def test_a_network_that_somebody_has_come_to_is_left_by_a_prune(daemon, networks, hyper):
    daemon.fail_next("RemoveNetwork", grpc.StatusCode.FAILED_PRECONDITION, "is in use by web")
    result = hyper("network", "prune", "-f", "--filter=until=1s")
    assert (result.status, result.out) == (0, "Deleted Networks:\nidle\n\n")
    daemon.fail_next("RemoveNetwork", grpc.StatusCode.UNAVAILABLE, "its rules were not removed")
    result = hyper("network", "prune", "-f", "--filter=until=1s")
    assert "its rules were not removed" in result.err
    assert result.status != 0


def test_a_system_prune_takes_networks_and_with_volumes_anonymous_ones(daemon, containers, networks, hyper):
    hyper("volume", "create", "db")
    hyper("volume", "create")
    result = hyper("system", "prune", "-f")
    assert "Deleted Networks:\nold\nidle\n\n" in result.out
    assert not asked(daemon, volume_pb2.PruneVolumesRequest)
    result = hyper("system", "prune", "-f", "--volumes", "--filter", "label=x")
    assert f"Deleted Volumes:\n{'f' * 64}\n\n" in result.out
    assert result.out.endswith("Total reclaimed space: 1.4MB\n")
    [request] = asked(daemon, volume_pb2.PruneVolumesRequest)
    assert [(item.key, item.value) for item in request.filters] == [("label", "x")]
    assert set(daemon.volumes) == {"db"}


def test_volumes_know_no_time(daemon, hyper, answer):
    result = hyper("system", "prune", "--volumes", "--filter", "until=1h")
    assert (result.status, result.out) == (2, "")
    assert "'until' is not known of volumes" in result.err


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ((), "bridge busy old idle"),
        (("name=ol",), "old"),
        (("name=ol", "name=idle"), "old idle"),
        (("type=builtin",), "bridge"),
        (("type=custom",), "busy old idle"),
        (("dangling=true",), "old idle"),
        (("dangling=false", "type=custom"), "busy"),
        (("label=team", "label=team=web"), "old"),
        (("label=team", "label=none"), ""),
        (("driver=bridge",), "bridge busy old idle"),
        (("driver=overlay",), ""),
        (("scope=local", "id=bbbb"), "bridge"),
    ],
)
def test_filters_of_network_ls(networks, hyper, filters, shown):
    result = hyper("network", "ls", "--format", "{{.Name}}", *(f"--filter={text}" for text in filters))
    assert result.out.split() == shown.split()


@pytest.mark.parametrize("text", ["type=odd", "dangling=maybe", "color=red", "name"])
def test_filters_of_network_ls_that_cannot_be_are_refused(networks, hyper, text):
    assert hyper("network", "ls", "--filter", text).status == 2


def test_a_network_that_there_is_not_is_no_failure_with_force(networks, hyper):
    assert hyper("network", "rm", "nowhere").status == 3
    assert hyper("network", "rm", "-f", "nowhere", "idle").status == 0
    assert "idle" not in networks
    assert hyper("network", "rm", "-f", "busy").status == 4
