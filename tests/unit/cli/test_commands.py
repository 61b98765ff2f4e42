# SPDX-License-Identifier: Apache-2.0
"""Command lines against a daemon: what is asked of it, what is printed, which status comes back."""

import json
import os
import stat
import tomllib
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

import hyperctl
from hyper.v1 import container_pb2 as pb
from hyper.v1 import image_pb2, system_pb2
from hyperctl import main, tables
from hyperctl.errors import EXIT_STATUS
from tests.fakes.daemon_state import digest

GOLDEN = Path(__file__).parents[2] / "golden/cli"


def golden(name, text):
    """Compare with a kept file; HYPER_UPDATE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("HYPER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def asked(daemon, kind):
    return [request for request in daemon.requests if isinstance(request, kind)]


@pytest.fixture
def web(daemon):
    spec = pb.ContainerSpec(
        name="web",
        image="docker.io/library/alpine:3",
        args=["sleep", "1000"],
        labels={"team": "a", "x.y": "1"},
    )
    container = daemon.add_container(spec)
    daemon.start_process(container)
    return container


# --- run and create


def test_everything_after_the_image_belongs_to_the_process(daemon, hyper):
    result = hyper("run", "--rm", "alpine", "echo", "-l", "--rm", "--", "-it", "--help")
    assert (result.status, result.out, result.err) == (0, "-l --rm -- -it --help\n", "")


def test_every_flag_arrives_in_the_spec(daemon, hyper, monkeypatch, tmp_path):
    monkeypatch.setenv("FROM_US", "yes")
    (tmp_path / "env").write_text("A=file\n#\nB=b c\n")
    (tmp_path / "labels").write_text("l1=one\nbare\n")
    flags = (
        "-it --rm --name n -e A=flag -e FROM_US -e NOT_SET "
        f"--env-file {tmp_path}/env -w /w -u me:us --entrypoint /bin/sh -h box -l k=v --label-file {tmp_path}/labels "
        "--cpus 1.5 -m 512m --read-only --cap-add NET_ADMIN --cap-drop ALL --privileged --ulimit nofile=10:20 "
        "--sysctl a.b=1 --tmpfs /run:size=1m --tmpfs /t --shm-size 64m --stop-signal INT --stop-timeout 3 --init "
        "--platform linux/arm64 --network none --security-opt no-new-privileges --security-opt seccomp=unconfined "
        "--group-add g --add-host h:10.0.0.1 --dns 10.0.0.2 --dns-search s --dns-option ndots:1 --pids-limit 9"
    ).split()
    assert hyper("create", *flags, "alpine", "-c", "true").status == 0
    [request] = asked(daemon, pb.CreateContainerRequest)
    assert request.spec == pb.ContainerSpec(
        image="alpine",
        name="n",
        args=["-c", "true"],
        entrypoint=["/bin/sh"],
        override_entrypoint=True,
        env=["A=flag", "B=b c", "FROM_US=yes"],
        working_directory="/w",
        user="me:us",
        hostname="box",
        labels={"k": "v", "l1": "one", "bare": ""},
        tty=True,
        stdin=True,
        cpus=1.5,
        memory_bytes=512 << 20,
        readonly_root=True,
        cap_add=["NET_ADMIN"],
        cap_drop=["ALL"],
        privileged=True,
        ulimits=[pb.Ulimit(name="nofile", soft=10, hard=20)],
        sysctls={"a.b": "1"},
        tmpfs={"/run": "size=1m", "/t": ""},
        shm_size_bytes=64 << 20,
        stop_signal="INT",
        stop_timeout_s=3,
        init=True,
        platform="linux/arm64",
        network="none",
        auto_remove=True,
        no_new_privileges=True,
        seccomp_unconfined=True,
        additional_groups=["g"],
        extra_hosts=["h:10.0.0.1"],
        dns_servers=["10.0.0.2"],
        dns_searches=["s"],
        dns_options=["ndots:1"],
        pids_limit=9,
    )


def test_without_flags_nothing_is_set(daemon, hyper):
    assert hyper("create", "alpine").status == 0
    [request] = asked(daemon, pb.CreateContainerRequest)
    assert request.spec == pb.ContainerSpec(image="alpine")


def test_an_empty_entrypoint_resets_the_images(daemon, hyper):
    assert hyper("create", "--entrypoint", "", "alpine", "x").status == 0
    [request] = asked(daemon, pb.CreateContainerRequest)
    assert (list(request.spec.entrypoint), request.spec.override_entrypoint) == ([], True)


def test_a_detached_run_prints_the_id(daemon, hyper):
    result = hyper("run", "-d", "--name", "web", "alpine", "sleep", "9")
    [container] = daemon.containers.values()
    assert (result.status, result.out) == (0, f"{container.id}\n")
    assert container.state == pb.CONTAINER_STATE_RUNNING


def test_the_status_of_the_process_is_ours(daemon, hyper):
    result = hyper("run", "alpine", "complain", "42")
    assert (result.status, result.out, result.err) == (42, "to stdout\n", "to stderr\n")


def test_what_is_not_found_in_the_image_is_127_and_said(daemon, hyper):
    result = hyper("run", "--name", "c", "alpine", "nosuch")
    assert result.status == 127
    assert result.err == (
        "hyper: c: the process could not be started\n  exec: 'nosuch': not found in $PATH\n"
    )


def test_a_guest_panic_shows_its_console_but_no_escape_sequence(daemon, hyper):
    result = hyper("run", "--name", "c", "alpine", "panic")
    assert result.status == 255
    assert result.err == "hyper: c: the guest kernel panicked\n  Kernel panic - not syncing\n  �[31mCPU: 0\n"


def test_running_out_of_memory_is_said(daemon, hyper):
    result = hyper("run", "--name", "c", "alpine", "oom")
    assert result.status == 137
    assert result.err == "hyper: c: killed: the machine ran out of memory\n"


def test_a_session_without_an_end_is_a_failure_of_hyper(daemon, hyper):
    result = hyper("run", "alpine", "drop")
    assert result.status == 125
    assert "ended the session" in result.err


def test_a_missing_image_is_pulled_and_told_on_standard_error(daemon, hyper):
    result = hyper("run", "--rm", "busybox", "echo", "hi")
    assert (result.status, result.out) == (0, "hi\n")
    assert result.err.startswith(
        "Unable to find image 'busybox:latest' locally\nlatest: Pulling from library/busybox\n"
    )
    assert result.err.endswith("Status: Downloaded newer image for busybox:latest\n")


def test_pull_never_leaves_it_at_that(daemon, hyper):
    result = hyper("run", "--pull", "never", "busybox")
    assert (result.status, result.err) == (125, "hyper: busybox: no such image\n")
    assert not asked(daemon, image_pb2.PullImageRequest)


def test_pull_always_asks_the_registry_first(daemon, hyper):
    assert hyper("run", "--pull=always", "--platform", "linux/amd64", "alpine", "echo").status == 0
    [request] = asked(daemon, image_pb2.PullImageRequest)
    assert (request.reference, request.platform) == ("alpine", "linux/amd64")


def test_an_image_that_is_nowhere_is_an_error_with_its_evidence(daemon, hyper):
    result = hyper("run", "nothere")
    assert result.status == 125
    assert result.err.endswith(
        "hyper: nothere: not in the registry\n  manifest unknown\nhint: check the spelling\n"
    )
    assert hyper("create", "nothere").status == 3


def test_a_cidfile_holds_the_id_and_is_never_overwritten(daemon, hyper, tmp_path):
    cidfile = tmp_path / "cid"
    assert hyper("run", "--cidfile", str(cidfile), "alpine", "echo").status == 0
    [container] = daemon.containers.values()
    assert cidfile.read_text() == container.id
    result = hyper("run", "--cidfile", str(cidfile), "alpine", "echo")
    assert (result.status, "the file exists" in result.err) == (125, True)
    assert len(daemon.containers) == 1


def test_a_cidfile_is_not_left_behind_by_a_failure(daemon, hyper, tmp_path):
    cidfile = tmp_path / "cid"
    assert hyper("create", "--cidfile", str(cidfile), "nothere").status == 3
    assert not cidfile.exists()


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("run", "-m", "lots", "alpine"), 125, "--memory: invalid argument 'lots'"),
        (("create", "-m", "lots", "alpine"), 2, "--memory: invalid argument 'lots'"),
        (("run", "--nosuch", "alpine"), 125, "run: no such option: --nosuch"),
        (("ps", "--nosuch"), 2, "ps: no such option: --nosuch"),
        (("run",), 125, "run: missing argument 'IMAGE'"),
        (("nosuch",), 2, "no such command 'nosuch'"),
        (("strat",), 2, "Did you mean 'start'"),
        (("run", "-it", "alpine"), 125, "the input device is not a TTY"),
        (("exec", "-it", "web", "sh"), 125, "the input device is not a TTY"),
        (("run", "--detach-keys", "ctrl-1", "alpine"), 125, "--detach-keys: unknown key"),
        (("run", "--pull", "often", "alpine"), 125, "--pull: invalid argument 'often'"),
        (("run", "-e", "A=\udcff", "alpine"), 125, "not UTF-8 text"),
        (("inspect", "-f", "{{template}}", "web"), 2, "--format: {{template}} is not supported"),
        (("inspect", "--type", "volume", "web"), 2, "--type: invalid argument 'volume'"),
        (("ps", "-f", "color=red"), 2, "--filter: invalid argument 'color=red'"),
        (("ps", "--format", "{{.Nope}}"), 2, "--format: there is no field 'Nope'"),
        (("logs", "--since", "then", "web"), 2, "--since: invalid argument 'then'"),
        (("stop", "-t", "soon", "web"), 2, "--timeout: invalid argument 'soon'"),
        (("completion", "csh"), 2, "completion: no completion for 'csh'"),
        (("doctor", "--format", "xml"), 2, "--format: invalid argument 'xml'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(daemon, web, hyper, args, status, message):
    result = hyper(*args)
    assert result.status == status
    assert result.err.startswith("hyper: ")
    assert message in result.err
    assert "Traceback" not in result.err


# --- the rest of a container's life


def test_start_stop_wait_rm(daemon, hyper):
    container = daemon.add_container(pb.ContainerSpec(name="c", image="alpine", args=["sleep"]))
    assert hyper("start", "c").out == "c\n"
    assert container.state == pb.CONTAINER_STATE_RUNNING
    assert hyper("rm", "c").status == 4
    assert hyper("stop", "-t", "3", "-s", "INT", "c").out == "c\n"
    [request] = asked(daemon, pb.StopContainerRequest)
    assert (request.timeout_s, request.signal) == (3, "INT")
    assert hyper("wait", "c").out == "143\n"
    result = hyper("kill", "c")
    assert (result.status, result.err) == (4, "hyper: c: is not running\n")
    assert hyper("rm", "c").out == "c\n"
    assert not daemon.containers


def test_stop_leaves_the_time_to_the_container(daemon, web, hyper):
    assert hyper("stop", "web").status == 0
    [request] = asked(daemon, pb.StopContainerRequest)
    assert not request.HasField("timeout_s")


def test_one_that_fails_does_not_stop_the_rest(daemon, web, hyper):
    result = hyper("stop", "nosuch", "web")
    assert (result.status, result.out, result.err) == (3, "web\n", "hyper: nosuch: no such container\n")


def test_to_remove_by_force_what_is_not_there_is_told_and_no_failure(daemon, hyper):
    result = hyper("rm", "-f", "nosuch")
    assert (result.status, result.out, result.err) == (0, "", "hyper: nosuch: no such container\n")


def test_an_exec_sends_all_it_was_told(daemon, web, hyper):
    flags = ("-e", "A=1", "-w", "/w", "-u", "me", "--privileged")
    assert hyper("exec", *flags, "web", "echo", "-n").out == "-n\n"
    [request] = asked(daemon, pb.ExecOptions)
    assert request == pb.ExecOptions(
        container="web", args=["echo", "-n"], env=["A=1"], working_directory="/w", user="me", privileged=True
    )


def test_a_detached_exec_says_nothing(daemon, web, hyper):
    result = hyper("exec", "-d", "web", "sleep", "1")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_hypers_own_failures_of_an_exec_are_125(daemon, hyper):
    result = hyper("exec", "nosuch", "true")
    assert (result.status, result.err) == (125, "hyper: nosuch: no such container\n")


def test_start_attached_gives_the_status(daemon, hyper):
    daemon.add_container(pb.ContainerSpec(name="c", image="alpine", args=["complain", "5"]))
    result = hyper("start", "-a", "c")
    assert (result.status, result.out) == (5, "to stdout\n")
    [request] = asked(daemon, pb.AttachOptions)
    assert (request.start, request.no_stdin) == (True, True)


# --- lists


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
    assert hyper("images", "-q").out.count("\n") == 2
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
    assert hyper("rmi", "busybox:1").out == f"Untagged: {reference}\nDeleted: {digest(reference)}\n"
    assert hyper("rmi", "busybox:1").status == 3


# --- inspect, logs, system


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


# --- failures


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


# --- help and completion


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("run",),
        ("exec",),
        ("ps",),
        ("daemon",),
        ("container",),
        ("image",),
        ("system",),
        ("cp",),
        ("commit",),
        ("snapshot",),
        ("template",),
        ("fork",),
    ],
)
def test_help(args, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(main.app, [*args, "--help"], prog_name="hyper", env={"HYPER_HOST": ""})
    assert result.exit_code == 0
    golden("-".join(("help", *args)) + ".txt", result.output)


def test_every_command_has_help_and_a_summary(hyper):
    for table, prefix in (
        (tables.ROOT_TABLE, ()),
        (tables.CONTAINER_GROUP, ("container",)),
        (tables.IMAGE_GROUP, ("image",)),
        (tables.SNAPSHOT_GROUP, ("snapshot",)),
        (tables.TEMPLATE_GROUP, ("template",)),
        (tables.MANIFEST_GROUP, ("manifest",)),
        (tables.SYSTEM_GROUP, ("system",)),
    ):
        for name, (_, _, summary) in table.items():
            if name.startswith("__"):
                continue
            result = hyper(*prefix, name, "--help")
            assert (result.status, bool(summary)) == (0, True), name
            assert result.out.startswith(f"Usage: hyper {' '.join((*prefix, name))} "), result.out


def test_hyper_alone_shows_its_help(capfd):
    assert main.run([]) == 2
    assert "Commands:" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], ["start", "stop"]),
        (["run", "--det"], ["--detach", "--detach-keys"]),
        (["run", "al"], ["alpine:latest"]),
        (["run", "-it", "--name", "x", "al"], ["alpine:latest"]),
        (["run", "--name", "al"], []),
        (["run", "alpine", ""], []),
        (["stop", "w"], ["web"]),
        (["stop", "web", ""], ["web"]),
        (["rm", "o"], ["old"]),
        (["stop", "o"], []),
        (["exec", "-it", ""], ["web"]),
        (["exec", "web", ""], []),
        (["container", "st"], ["start", "stop"]),
        (["container", "rm", "o"], ["old"]),
        (["image", "rm", ""], ["alpine:latest"]),
        (["daemon", ""], ["start", "stop", "status"]),
        (["inspect", ""], ["old", "web", "alpine:latest"]),
        (["pause", ""], ["web"]),
        (["unpause", ""], []),
        (["run", "--from-snapshot", "w"], ["warm"]),
        (["snapshot", "rm", ""], ["warm"]),
        (["rollback", "w"], ["web"]),
        (["rollback", "web", ""], ["warm"]),
        (["template", "rm", ""], ["743714ee7b2a"]),
        (["nosuch", ""], []),
    ],
)
def test_completion(daemon, web, hyper, words, expected):
    daemon.add_container(pb.ContainerSpec(name="old", image="alpine"))
    daemon.add_snapshot(web, "warm")
    daemon.add_template(1, 256, "nic")
    assert hyper("__complete", *words).out.split() == expected


def test_completion_without_a_daemon_is_silent(hyper):
    result = hyper("__complete", "stop", "")
    assert (result.status, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(hyper, shell):
    assert "hyper __complete" in hyper("completion", shell).out


def test_the_version_is_the_packages():
    project = tomllib.loads((GOLDEN.parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == hyperctl.VERSION
