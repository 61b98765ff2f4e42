# SPDX-License-Identifier: Apache-2.0
"""Pausing, snapshots, forks and templates: what is asked of the daemon, what is printed, which status comes back."""

import json
import os
import re
import subprocess
import threading

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2
from tests.unit.cli.at_a_terminal import at_a_terminal
from tests.unit.cli.conftest import DEADLINE_S
from tests.unit.cli.goldens import asked, golden

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


# --- templates
