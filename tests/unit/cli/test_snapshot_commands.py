# SPDX-License-Identifier: Apache-2.0
"""Pausing, snapshots, forks and templates: what is asked of the daemon, what is printed, which status comes back."""

import json
import os
import re
import subprocess
import sys
import threading

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2
from hyperctl import main
from tests.terminal import terminal
from tests.unit.cli.conftest import DEADLINE_S
from tests.unit.cli.goldens import asked, golden

ENTRY = [sys.executable, "-m", "hyperctl.main"]


@pytest.fixture
def web(daemon):
    container = daemon.add_container(
        pb.ContainerSpec(name="web", image="docker.io/library/alpine:3", args=["sleep"])
    )
    daemon.start_process(container)
    return container


def at_a_terminal(*args):
    """Output at a terminal, whole."""
    with terminal(["sh", "-c", '"$@"; echo "status $?"', "sh", *ENTRY, *args]) as it:
        found = it.wait_for(rb"(?s)^(.*)status (\d+)\r\n")
        return int(found[2]), found[1].decode().replace("\r\n", "\n")


@pytest.fixture
def with_environ(environ, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


# --- pause, hibernate


def test_pause_and_unpause(daemon, web, hyper):
    assert hyper("pause", "web").out == "web\n"
    assert web.state == pb.CONTAINER_STATE_PAUSED
    assert hyper("ps", "--format", "{{.State}} {{.Status}}").out == "paused Up Less than a second (Paused)\n"
    assert hyper("inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}", "web").out == (
        "paused true true\n"
    )
    assert hyper("__complete", "unpause", "").out == "web\n"
    form = "{{.ContainersRunning}} {{.ContainersPaused}} {{.ContainersStopped}}"
    assert hyper("info", "-f", form).out == "0 1 0\n"
    assert hyper("unpause", "web").out == "web\n"
    assert web.state == pb.CONTAINER_STATE_RUNNING


def test_hibernate_and_wake(daemon, web, hyper):
    assert hyper("hibernate", "web").out == "web\n"
    assert hyper("ps", "-q").out == ""
    assert hyper("ps", "-a", "--format", "{{.Status}}").out == "Hibernated Less than a second ago\n"
    assert hyper("inspect", "-f", "{{.State.Status}} {{.State.Running}}", "web").out == "hibernated false\n"
    assert hyper("__complete", "wake", "").out == "web\n"
    assert hyper("ps", "-f", "status=hibernated", "--format", "{{.Names}}").out == "web\n"
    assert hyper("ps", "-f", "status=paused", "--format", "{{.Names}}").out == ""
    assert hyper("wake", "web").out == "web\n"
    assert web.state == pb.CONTAINER_STATE_RUNNING


@pytest.mark.parametrize("verb", ["pause", "unpause", "hibernate", "wake"])
def test_one_that_cannot_does_not_stop_the_rest(daemon, web, hyper, verb):
    daemon.add_container(pb.ContainerSpec(name="new", image="alpine"))
    web.state = pb.CONTAINER_STATE_HIBERNATED if verb in {"hibernate", "wake"} else pb.CONTAINER_STATE_PAUSED
    result = hyper(verb, "new", "nosuch", "web")
    assert (result.status, result.out) == (4, "web\n")
    assert result.err == "hyper: new: is created\nhyper: nosuch: no such container\n"


def test_inspect_shows_how_it_started(daemon, web, hyper):
    web.start.note = "no template yet"
    assert json.loads(hyper("inspect", "-f", "{{json .Start}}", "web").out) == {
        "Path": "template",
        "Note": "no template yet",
        "Phases": [{"Name": "restore", "DurationMs": 20}],
    }


# --- snapshots


def test_create_prints_the_id_alone_into_a_pipe(daemon, web, hyper):
    result = hyper("snapshot", "create", "web", "--name", "warm")
    [snapshot] = daemon.snapshots.values()
    assert (result.status, result.out, result.err) == (0, f"{snapshot.id}\n", "")
    [request] = asked(daemon, snapshot_pb2.CreateSnapshotRequest)
    assert (request.container, request.name) == ("web", "warm")


def test_create_tells_a_person_how_long_the_source_stood_still(daemon, web, with_environ):
    status, seen = at_a_terminal("snapshot", "create", "web")
    [snapshot] = daemon.snapshots.values()
    assert (status, seen) == (0, f"{snapshot.id}\npaused 41 ms\n")
    assert re.fullmatch(r"[0-9a-f]{64}\n", at_a_terminal("snapshot", "create", "-q", "web")[1])


def test_what_cannot_be_saved_is_told(daemon, web, hyper):
    daemon.add_snapshot(web, "warm")
    result = hyper("snapshot", "create", "web", "--name", "warm")
    assert (result.status, result.err) == (4, "hyper: warm: the name is taken\n")
    assert hyper("snapshot", "create", "nosuch").status == 3
    web.state = pb.CONTAINER_STATE_EXITED
    result = hyper("snapshot", "create", "web")
    assert (result.status, result.out, result.err) == (4, "", "hyper: web: is exited\n")
    daemon.fail_next(
        "CreateSnapshot", grpc.StatusCode.RESOURCE_EXHAUSTED, "no space", evidence="needs 300 MiB of 100 MiB"
    )
    assert hyper("snapshot", "create", "web").status == 5


@pytest.fixture
def two_snapshots(daemon, web, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    for name, age_s in (("warm", 7200), ("", 120)):
        snapshot = daemon.add_snapshot(web, name)
        snapshot.created_at.FromSeconds(1_800_000_000 - age_s)
    return list(daemon.snapshots.values())


def test_snapshots_are_listed_as_docker_would(two_snapshots, hyper):
    golden("snapshot-ls.txt", hyper("snapshot", "ls").out)
    assert hyper("snapshot", "list").out == hyper("snapshot", "ls").out


def test_snapshots_by_template_as_json_and_by_id(two_snapshots, hyper):
    warm, unnamed = two_snapshots
    assert hyper("snapshot", "ls", "-q").out == f"{unnamed.id[:12]}\n{warm.id[:12]}\n"
    assert hyper("snapshot", "ls", "-q", "--no-trunc").out == f"{unnamed.id}\n{warm.id}\n"
    assert hyper("snapshot", "ls", "--format", r"{{.Name}}\t{{.Size}}\t{{.VirtualSize}}").out == (
        "\t45.6MB\t10GB\nwarm\t45.6MB\t10GB\n"
    )
    rows = [json.loads(line) for line in hyper("snapshot", "ls", "--format", "json").out.splitlines()]
    assert [(row["Name"], row["Source"], row["PauseMs"]) for row in rows] == [
        ("", "web", 41),
        ("warm", "web", 41),
    ]


def test_no_snapshots_is_a_header(daemon, hyper):
    assert hyper("snapshot", "ls").out == (
        "SNAPSHOT ID   NAME      SOURCE    IMAGE     MEMORY    SIZE      CREATED\n"
    )


def test_inspect_shows_what_a_host_must_have(daemon, web, hyper):
    snapshot = daemon.add_snapshot(web, "warm")
    [document] = json.loads(hyper("snapshot", "inspect", "warm").out)
    assert (document["Id"], document["Name"], document["PauseMs"]) == (snapshot.id, "warm", 41)
    assert document["Source"] == {"Id": web.id, "Name": "web"}
    assert document["Compatibility"]["QemuVersion"] == "10.0.2"
    assert document["Files"] == [{"Name": "state", "Size": 268_500_000, "Sha256": "5" * 64}]
    form = "{{.Compatibility.MemoryMiB}} {{range .Files}}{{.Name}}{{end}}"
    assert hyper("snapshot", "inspect", "-f", form, "warm").out == "256 state\n"
    result = hyper("snapshot", "inspect", "nosuch", "warm", "-f", "{{.Name}}")
    assert (result.status, result.out, result.err) == (3, "warm\n", "hyper: nosuch: no such snapshot\n")


def test_rm_goes_on_after_a_failure(daemon, web, hyper):
    daemon.add_snapshot(web, "warm")
    result = hyper("snapshot", "rm", "nosuch", "warm")
    assert (result.status, result.out, result.err) == (3, "warm\n", "hyper: nosuch: no such snapshot\n")
    assert not daemon.snapshots


# --- export and import


def test_a_snapshot_comes_back_byte_by_byte(daemon, web, hyper, tmp_path):
    snapshot = daemon.add_snapshot(web, "warm")
    file = tmp_path / "warm.tar"
    assert hyper("snapshot", "export", "warm", "-o", str(file)).status == 0
    assert file.read_bytes() == daemon.contents[snapshot.id]
    assert file.stat().st_mode & 0o777 == 0o600
    result = hyper("snapshot", "import", "-i", str(file), "--name", "again")
    imported = list(daemon.snapshots.values())[-1]
    assert (result.status, result.out, result.err) == (0, f"{imported.id}\n", "")
    assert imported.name == "again"


def test_a_snapshot_goes_through_pipes(daemon, web, spawn):
    snapshot = daemon.add_snapshot(web, "warm")
    export = spawn("snapshot", "export", "warm", stdout=subprocess.PIPE)
    read = spawn("snapshot", "import", stdin=export.stdout, stdout=subprocess.PIPE)
    out, _ = read.communicate(timeout=DEADLINE_S)
    assert (export.wait(DEADLINE_S), read.returncode) == (0, 0)
    assert out.decode().strip() in set(daemon.snapshots) - {snapshot.id}


def test_an_export_that_fails_halfway_leaves_the_file_that_was_there(daemon, web, hyper, tmp_path):
    daemon.add_snapshot(web, "warm")
    daemon.fail_next("ExportSnapshotHalfway", grpc.StatusCode.UNAVAILABLE, "the disk failed")
    file = tmp_path / "warm.tar"
    file.write_text("precious")
    result = hyper("snapshot", "export", "warm", "-o", str(file))
    assert (result.status, result.err) == (7, "hyper: warm: the disk failed\n")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".sock"] == ["warm.tar"]
    assert file.read_text() == "precious"
    assert hyper("snapshot", "export", "nosuch", "-o", str(tmp_path / "new")).status == 3
    assert not (tmp_path / "new").exists()


def test_an_export_to_a_full_device_is_told(daemon, web, hyper):
    daemon.add_snapshot(web, "warm")
    result = hyper("snapshot", "export", "warm", "-o", "/dev/full")
    assert (result.status, result.err) == (
        1,
        "hyper: /dev/full: cannot be written: No space left on device\n",
    )


def test_an_export_into_a_named_pipe(daemon, web, hyper, tmp_path):
    snapshot = daemon.add_snapshot(web, "warm")
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert hyper("snapshot", "export", "warm", "-o", str(tmp_path / "pipe")).status == 0
    reader.join(DEADLINE_S)
    assert got == [daemon.contents[snapshot.id]]
    assert (tmp_path / "pipe").is_fifo()


def test_a_reader_that_has_gone_ends_an_export_quietly(daemon, web, spawn):
    daemon.add_snapshot(web, "warm")
    export = spawn("snapshot", "export", "warm", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    export.stdout.read(1)
    export.stdout.close()
    assert (export.wait(DEADLINE_S), export.stderr.read()) == (141, b"")


def test_what_is_no_snapshot_is_not_imported(daemon, hyper, tmp_path):
    (tmp_path / "other").write_bytes(b"x" * 10_000_000)
    result = hyper("snapshot", "import", "-i", str(tmp_path / "other"))
    said = f"hyper: {tmp_path}/other: import: is not a snapshot\n"
    assert (result.status, result.out, result.err) == (2, "", said)


def test_an_import_refused_early_tells_why(daemon, web, hyper, tmp_path):
    daemon.add_snapshot(web, "warm")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    result = hyper("snapshot", "import", "-i", str(tmp_path / "large"), "--name", "warm")
    assert (result.status, result.err) == (4, "hyper: warm: the name is taken\n")


def test_what_cannot_be_read_is_told_and_not_imported(daemon, hyper, tmp_path):
    result = hyper("snapshot", "import", "-i", str(tmp_path))
    assert (result.status, result.err) == (1, f"hyper: {tmp_path}: cannot be read: Is a directory\n")
    result = hyper("snapshot", "import", "-i", str(tmp_path / "nosuch"))
    assert (result.status, "cannot be read: No such file" in result.err) == (2, True)
    assert not daemon.snapshots


def test_terminals_are_refused_and_shown_progress(daemon, web, with_environ, tmp_path):
    daemon.add_snapshot(web, "warm")
    status, seen = at_a_terminal("snapshot", "export", "warm")
    assert (status, "refusing to write a snapshot to a terminal" in seen) == (2, True)
    status, seen = at_a_terminal("snapshot", "import")
    assert (status, "refusing to read a snapshot from a terminal" in seen) == (2, True)
    file = tmp_path / "warm.tar"
    status, seen = at_a_terminal("snapshot", "export", "warm", "-o", str(file))
    assert (status, "exported 3.2MB" in seen) == (0, True)
    status, seen = at_a_terminal("snapshot", "import", "-i", str(file))
    assert (status, "imported 3.2MB/3.2MB" in seen) == (0, True)


# --- clones


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


# --- templates


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
