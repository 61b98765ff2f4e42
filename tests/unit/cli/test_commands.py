# SPDX-License-Identifier: Apache-2.0
"""Command lines against a daemon: what is asked of it, what is printed, which status comes back."""

import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import image_pb2
from tests.unit.cli.goldens import asked


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
        (("strat",), 2, "Did you mean"),
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


def test_the_ports_of_one_container_are_listed_as_port_shows_them(daemon, hyper):
    assert hyper("run", "-d", "--name", "site", "alpine", "sleep", "9").status == 0
    shown, listed = hyper("port", "site"), hyper("port", "ls", "site")
    assert (listed.status, listed.out) == (shown.status, shown.out) == (0, shown.out)
    assert [request.container for request in asked(daemon, pb.InspectContainerRequest)] == ["site", "site"]
    assert hyper("port", "ls", "nobody").status == 3
    assert hyper("port", "ls", "--format", "json", "site").status == 2
