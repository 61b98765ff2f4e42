# SPDX-License-Identifier: Apache-2.0
"""Lists, documents and logs as Docker prints them."""

import json

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import system_pb2
from hyperctl.commands.system import describe_info
from tests.fakes.daemon_state import digest
from tests.unit.cli.goldens import asked, golden


def at(container, created_s, started_s, finished_s):
    for field, seconds in (("created_at", created_s), ("started_at", started_s), ("finished_at", finished_s)):
        if seconds:
            getattr(container, field).FromSeconds(1_800_000_000 - seconds)


@pytest.fixture
def all_states(daemon, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    specs = [
        ("running", pb.CONTAINER_STATE_RUNNING, None),
        ("created", pb.CONTAINER_STATE_CREATED, None),
        ("exited", pb.CONTAINER_STATE_EXITED, pb.ExitStatus(code=0, reason=pb.EXIT_REASON_EXITED)),
        ("oom", pb.CONTAINER_STATE_EXITED, pb.ExitStatus(code=137, signal=9, reason=pb.EXIT_REASON_OOM)),
        ("panicked", pb.CONTAINER_STATE_FAILED, pb.ExitStatus(code=255, reason=pb.EXIT_REASON_GUEST_PANIC)),
        ("starting", pb.CONTAINER_STATE_STARTING, None),
        ("paused", pb.CONTAINER_STATE_PAUSED, None),
        ("asleep", pb.CONTAINER_STATE_HIBERNATED, None),
    ]
    for index, (name, state, status) in enumerate(specs):
        container = daemon.add_container(
            pb.ContainerSpec(
                name=name, image="docker.io/library/alpine:3", args=["sh", "-c", "echo a long one"]
            )
        )
        container.state = state
        ended = status is not None or name == "asleep"
        up = name in {"running", "paused"}
        at(container, 10_000 * (index + 1), 3600 if ended or up else 0, 120 if ended else 0)
        if status is not None:
            container.exit.CopyFrom(status)


def test_ps_prints_dockers_table(all_states, hyper):
    golden("ps.txt", hyper("ps", "-a").out)


def test_ps_without_truncation(all_states, hyper):
    golden("ps-no-trunc.txt", hyper("ps", "--no-trunc").out)


def test_ps_by_template_and_as_json(daemon, web, hyper):
    assert hyper("ps", "--format", r"{{.Names}}\t{{.State}}").out == "web\trunning\n"
    assert hyper("ps", "--format", "table {{.ID}}\t{{.Names}}").out == (
        f"CONTAINER ID   NAMES\n{web.id[:12]}   web\n"
    )
    assert hyper("ps", "--format", '{{.Label "team"}}').out == "a\n"
    row = json.loads(hyper("ps", "--format", "json").out)
    assert (row["ID"], row["Image"], row["Labels"]) == (web.id[:12], "alpine:3", "team=a,x.y=1")
    assert hyper("ps", "--format", "{{ json . }}").out == hyper("ps", "--format", "json").out
    assert hyper("ps", "-q", "--no-trunc").out == f"{web.id}\n"


def test_ps_asks_for_what_the_flags_say(daemon, web, hyper):
    daemon.add_container(pb.ContainerSpec(name="newer", image="alpine"))
    assert hyper("ps", "-l", "--format", "{{.Names}}").out == "newer\n"
    assert hyper("ps", "-n", "2", "--format", "{{.Names}}").out == "newer\nweb\n"
    hyper("ps", "-f", "name=w", "-f", "label=team=a")
    assert [(f.key, f.value) for f in asked(daemon, pb.ListContainersRequest)[-1].filters] == [
        ("name", "w"),
        ("label", "team=a"),
    ]


def test_an_empty_list_has_its_header_only(daemon, hyper):
    assert hyper("ps").out == "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    assert hyper("ps", "-q").out == ""
    assert hyper("ps", "--format", "{{.ID}}").out == ""


def test_images(daemon, hyper):
    daemon.images.clear()
    daemon.add_image("debian:12", size_bytes=116_543_210, age_s=86400 * 20)
    image = daemon.add_image("localhost:5000/team/app:v1", size_bytes=999)
    image.tags.append("localhost:5000/team/app:latest")
    golden("images.txt", hyper("images").out)
    golden("images-digests.txt", hyper("image", "ls", "--digests").out)
    assert hyper("images", "-q").out.count("\n") == 3  # one a row, as Docker has it
    assert hyper("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}").out.splitlines()[-1] == (
        "debian:12 117MB"
    )


def test_what_a_pull_says_comes_after_the_reference_was_understood(daemon, hyper):
    assert hyper("pull", "busybox").out.splitlines()[:2] == [
        "Using default tag: latest",
        "latest: Pulling from library/busybox",
    ]
    daemon.fail_next("PullImage", grpc.StatusCode.INVALID_ARGUMENT, "malformed image reference")
    result = hyper("pull", "foo bar")
    assert (result.status, result.out) == (2, "")


def test_pull_and_rmi(daemon, hyper):
    result = hyper("pull", "busybox:1")
    assert result.status == 0
    golden("pull.txt", result.out)
    assert hyper("pull", "-q", "busybox:1").out == "docker.io/library/busybox:1\n"
    reference = "docker.io/library/busybox:1"
    assert hyper("rmi", "busybox:1").out == f"Untagged: busybox:1\nDeleted: {digest(reference)}\n"
    assert hyper("rmi", "busybox:1").status == 3


def test_the_config_of_inspect_is_merged_with_the_images(daemon, hyper):
    image = daemon.add_image("app")
    image.config.env[:] = ["PATH=/bin", "A=image", "GONE=1"]
    image.config.entrypoint[:] = ["/entry"]
    image.config.working_directory, image.config.user, image.config.stop_signal = "/w", "app", "SIGINT"
    specs = {
        "plain": pb.ContainerSpec(env=["A=own", "GONE"], labels={"maintainer": "me"}),
        "own": pb.ContainerSpec(entrypoint=["/mine"], override_entrypoint=True, user="root", args=["x"]),
        "none": pb.ContainerSpec(override_entrypoint=True),
    }
    found = {}
    for name, spec in specs.items():
        spec.name, spec.image = name, "app"
        daemon.add_container(spec).image_id = image.id
        found[name] = json.loads(hyper("inspect", name).out)[0]["Config"]
    plain, own = found["plain"], found["own"]
    assert plain["Env"] == ["A=own", "PATH=/bin"]
    assert (plain["Entrypoint"], plain["Cmd"]) == (["/entry"], ["sh"])
    assert (plain["WorkingDir"], plain["User"], plain["StopSignal"]) == ("/w", "app", "SIGINT")
    assert plain["Labels"] == {"maintainer": "me"}
    assert (own["Entrypoint"], own["Cmd"], own["User"]) == (["/mine"], ["x"], "root")
    assert (found["none"]["Entrypoint"], found["none"]["Cmd"]) == (None, None)


def test_inspect_is_dockers_document(daemon, web, hyper):
    [document] = json.loads(hyper("inspect", "web").out)
    assert document["Name"] == "/web"
    assert document["State"]["Status"] == "running"
    assert document["NetworkSettings"]["IPAddress"] == "10.88.0.2"
    assert document["Sandbox"] == {
        "Accelerator": "tcg",
        "VcpuCount": 1,
        "MemoryMiB": 256,
        "VmPid": web.vm_pid,
        "GuestKernel": "6.12.1-hyper",
        "StartMs": 123,
    }
    form = "{{.State.Running}} {{index .Config.Labels `x.y`}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    assert hyper("inspect", "-f", form, "web").out == "true 1 10.88.0.2\n"


def test_inspect_finds_images_too_and_says_what_it_does_not_find(daemon, web, hyper):
    assert hyper("inspect", "-f", "{{.RepoTags}}", "alpine").out == "[alpine:latest]\n"
    result = hyper("inspect", "nosuch", "web", "-f", "{{.Name}}")
    assert (result.status, result.out) == (3, "/web\n")
    assert result.err == "hyper: nosuch: no such container or image\n"
    assert hyper("inspect", "nosuch").out == "[]\n"
    assert hyper("image", "inspect", "web").err == "hyper: web: no such image\n"
    assert hyper("container", "inspect", "alpine").status == 3


def log(seconds, data, stream=pb.STREAM_STDOUT):
    entry = pb.ReadLogsResponse(stream=stream, data=data)
    entry.time.FromNanoseconds(1_800_000_000_000_000_000 + int(seconds * 1e9))
    return entry


def test_logs_keep_the_streams_apart_and_put_the_time_before_lines(daemon, web, hyper):
    daemon.log = [log(0, b"one\ntw"), log(0.5, b"o\n"), log(1, b"oops\n", pb.STREAM_STDERR), log(2, b"three")]
    result = hyper("logs", "web")
    assert (result.out, result.err) == ("one\ntwo\nthree", "oops\n")
    result = hyper("logs", "-t", "web")
    assert result.out == ("2027-01-15T08:00:00Z one\n2027-01-15T08:00:00Z two\n2027-01-15T08:00:02Z three")
    assert result.err == "2027-01-15T08:00:01Z oops\n"


def test_logs_ask_for_what_the_flags_say(daemon, web, hyper):
    assert (
        hyper(
            "logs", "-f", "-n", "5", "--since", "2026-01-01T00:00:00Z", "--until", "1800000000", "web"
        ).status
        == 0
    )
    assert hyper("logs", "--tail", "all", "web").status == 0
    first, second = asked(daemon, pb.ReadLogsRequest)
    assert (first.follow, first.tail_lines, first.since.seconds) == (True, 5, 1_767_225_600)
    assert first.until.seconds == 1_800_000_000
    assert not second.HasField("tail_lines")
    assert not second.HasField("since")


def test_version_shows_both_sides(daemon, hyper):
    result = hyper("version")
    assert "Client:\n Version:           0.1.0\n" in result.out
    assert " QEMU:              10.0.2\n" in result.out
    assert hyper("version", "-f", "{{.Server.QemuVersion}}").out == "10.0.2\n"
    assert hyper("--version").out == "hyper version 0.1.0\n"


def test_info(daemon, web, hyper):
    golden("info.txt", hyper("info").out)
    assert hyper("info", "-f", "{{.Accelerator}} {{.ContainersRunning}}").out == "tcg 1\n"


def test_info_before_the_probe_has_ended():
    answer = system_pb2.GetInfoResponse(accelerator_reason="the probe has not ended yet")
    assert " Accelerator: not known yet (the probe has not ended yet)\n" in describe_info(answer)


def test_doctor_asks_the_daemon(daemon, hyper):
    daemon.checks = [
        system_pb2.HostCheck(name="qemu", level=system_pb2.CHECK_LEVEL_OK, finding="10.0.2"),
        system_pb2.HostCheck(
            name="accelerator",
            level=system_pb2.CHECK_LEVEL_WARNING,
            finding="tcg",
            advice="enable nested\nKVM",
        ),
    ]
    result = hyper("doctor")
    golden("doctor.txt", result.out)
    assert result.status == 0
    daemon.checks[0].level = system_pb2.CHECK_LEVEL_FAILED
    assert hyper("doctor").status == 1
    assert json.loads(hyper("doctor", "--format", "json").out)["checks"][0]["level"] == "failed"
