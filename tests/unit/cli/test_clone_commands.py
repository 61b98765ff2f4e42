# SPDX-License-Identifier: Apache-2.0
"""`hyper run --from-snapshot`, `fork`, `rollback` and `template`."""

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2
from hyperctl import main
from tests.unit.cli.at_a_terminal import at_a_terminal
from tests.unit.cli.goldens import asked, golden


def test_clones_of_a_snapshot(daemon, web, hyper, monkeypatch, tmp_path):
    monkeypatch.setenv("FROM_US", "yes")
    (tmp_path / "labels").write_text("l1=one\n")
    snapshot = daemon.add_snapshot(web, "warm")
    before = set(daemon.containers)
    flags = f"-n 3 -d --name c -e A=1 -e FROM_US -l k=v --label-file {tmp_path}/labels --network none --rm"
    result = hyper("run", "--from-snapshot", "warm", *flags.split())
    [request] = asked(daemon, snapshot_pb2.RestoreSnapshotRequest)
    assert request.snapshot == snapshot.name
    assert request.options == pb.CloneOptions(
        count=3,
        name="c",
        env=["A=1", "FROM_US=yes"],
        labels={"k": "v", "l1": "one"},
        network="none",
        auto_remove=True,
    )
    clones = [id_ for id_ in daemon.containers if id_ not in before]
    assert (result.status, result.out.splitlines(), result.err) == (0, clones, "")
    assert [daemon.containers[id_].name for id_ in clones] == ["c-0", "c-1", "c-2"]


def test_one_clone_is_in_the_background_too(daemon, web, hyper, tmp_path):
    daemon.add_snapshot(web, "warm")
    result = hyper("run", "--from-snapshot", "warm", "--cidfile", str(tmp_path / "cid"))
    [request] = asked(daemon, snapshot_pb2.RestoreSnapshotRequest)
    assert request.options == pb.CloneOptions(count=1)
    assert result.out == f"{(tmp_path / 'cid').read_text()}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("alpine",), "--from-snapshot: an image (alpine) and a snapshot at once"),
        (("-it",), "--from-snapshot: --interactive, --tty cannot be chosen for a clone"),
        (("-m", "1g", "--entrypoint", "sh"), "--entrypoint, --memory cannot be chosen"),
        (("--pull", "always"), "--pull cannot be chosen"),
        (("--sig-proxy=false",), "--no-sig-proxy cannot be chosen"),
        (("--detach-keys", "a"), "--detach-keys cannot be chosen"),
        (("-n", "0"), "--count: invalid argument '0'"),
        (("-n", "many"), "--count: invalid argument 'many'"),
        (("-n", "2", "--cidfile", "/nosuch/cid"), "--cidfile: holds one id"),
        (("-e", "A=\udcff"), "not UTF-8 text"),
    ],
)
def test_what_no_clone_can_have_is_refused_by_name(daemon, web, hyper, args, message):
    daemon.add_snapshot(web, "warm")
    result = hyper("run", "--from-snapshot", "warm", *args)
    assert (result.status, message in result.err) == (125, True), result.err
    assert not asked(daemon, snapshot_pb2.RestoreSnapshotRequest)


def test_a_count_without_a_snapshot_is_refused(daemon, hyper):
    result = hyper("run", "-n", "2", "alpine")
    assert (result.status, result.err) == (125, "hyper: --count: only goes with --from-snapshot\n")
    assert main.run(["run"]) == 125


def test_failures_of_a_clone_are_125_as_with_every_run(daemon, hyper):
    result = hyper("run", "--from-snapshot", "nosuch")
    assert (result.status, result.err) == (125, "hyper: nosuch: no such snapshot\n")


def test_fork(daemon, web, hyper):
    before = set(daemon.containers)
    result = hyper("fork", "-n", "2", "--name", "c", "-e", "SEED=7", "-l", "k=v", "--rm", "web")
    [request] = asked(daemon, pb.ForkContainerRequest)
    assert request.container == "web"
    assert request.options == pb.CloneOptions(
        count=2, name="c", env=["SEED=7"], labels={"k": "v"}, auto_remove=True
    )
    clones = [id_ for id_ in daemon.containers if id_ not in before]
    assert (result.status, result.out.splitlines(), result.err) == (0, clones, "")


def test_fork_tells_a_person_of_the_pause_and_has_statuses_of_its_own(daemon, web, hyper, with_environ):
    status, seen = at_a_terminal("fork", "web")
    assert (status, seen.splitlines()[1:]) == (0, ["paused 41 ms"])
    assert hyper("fork", "nosuch").status == 3
    assert hyper("fork", "-n", "-1", "web").status == 2
    daemon.fail_next(
        "ForkContainer", grpc.StatusCode.RESOURCE_EXHAUSTED, "not enough memory", evidence="8 x 300 MiB"
    )
    result = hyper("fork", "-n", "8", "web")
    assert (result.status, result.err) == (5, "hyper: not enough memory\n  8 x 300 MiB\n")


def test_rollback(daemon, web, hyper):
    other = daemon.add_container(pb.ContainerSpec(name="other", image="alpine"))
    daemon.add_snapshot(web, "warm")
    assert hyper("rollback", "web", "warm").out == "web\n"
    [request] = asked(daemon, pb.RollbackContainerRequest)
    assert (request.container, request.snapshot) == ("web", "warm")
    result = hyper("rollback", other.name, "warm")
    assert (result.status, result.out, result.err) == (4, "", "hyper: warm: is of another container\n")


def test_templates(daemon, hyper, monkeypatch):
    result = hyper("template", "build", "--cpus", "2", "--memory", "512m")
    [request] = asked(daemon, snapshot_pb2.BuildTemplateRequest)
    assert (request.vcpus, request.memory_mib) == (2, 512)
    assert (result.status, result.out.splitlines(), result.err) == (0, list(daemon.templates), "")
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    for template, used_s in zip(daemon.templates.values(), (5, 0), strict=True):
        template.created_at.FromSeconds(1_800_000_000 - 120)
        if used_s:
            template.last_used_at.FromSeconds(1_800_000_000 - used_s)
    golden("template-ls.txt", hyper("template", "ls").out)
    assert hyper("template", "ls", "-q", "--no-trunc").out.split() == list(daemon.templates)
    assert hyper("template", "ls", "--format", "{{.Cpus}} {{.Memory}}").out == "2 512MiB\n2 512MiB\n"
    first = next(iter(daemon.templates))
    result = hyper("template", "rm", first[:12], "nosuch")
    assert (result.status, result.out, result.err) == (
        3,
        f"{first[:12]}\n",
        "hyper: nosuch: no such template\n",
    )


def test_a_template_of_the_default_size(daemon, hyper):
    assert hyper("template", "build").status == 0
    [request] = asked(daemon, snapshot_pb2.BuildTemplateRequest)
    assert (request.vcpus, request.memory_mib) == (0, 0)


@pytest.mark.parametrize("args", [("--cpus", "1.5"), ("--cpus", "0"), ("-m", "10k"), ("-m", "8388607t")])
def test_a_size_that_no_machine_has_is_refused(daemon, hyper, args):
    result = hyper("template", "build", *args)
    assert (result.status, "invalid argument" in result.err) == (2, True)
    assert not asked(daemon, snapshot_pb2.BuildTemplateRequest)
