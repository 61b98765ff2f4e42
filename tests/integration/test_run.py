# SPDX-License-Identifier: Apache-2.0
"""A real image in a real guest: what `hyper run` promises."""

import hashlib
import platform

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"
APP = "test.local/app"


def test_a_container_has_a_kernel_of_its_own(host: Hyper):
    release = host.ok("run", "--rm", BUSYBOX, "uname", "-r")
    assert release.startswith("6.12.")
    assert release != platform.release()


def test_layers_users_entrypoint_and_directory_are_the_images(host: Hyper):
    assert host.ok("run", "--rm", APP) == "hello"
    script = "id -u; id -g; id -G; pwd; ls /srv; cat /srv/replaced; ls /srv/opaque; stat -c %h hello"
    lines = host.ok("run", "--rm", APP, script).splitlines()
    assert lines[:2] == ["1000", "1000"]
    assert set(lines[2].split()) == {"1000", "29", "100"}
    assert lines[3] == "/home/app"
    assert "deleted" not in lines
    assert "gone" not in lines
    assert lines[-3:] == ["new", "seen", "2"]


def test_the_exit_status_is_the_processes_own(host: Hyper):
    assert host.run("run", "--rm", BUSYBOX, "sh", "-c", "exit 42").returncode == 42
    assert host.run("run", "--rm", "--init", BUSYBOX, "sh", "-c", "kill -TERM $$").returncode == 128 + 15


def test_stdout_and_stderr_stay_apart(host: Hyper):
    finished = host.run("run", "--rm", BUSYBOX, "sh", "-c", "echo out; echo err >&2")
    assert (finished.stdout, finished.stderr) == (b"out\n", b"err\n")


def test_standard_input_reaches_the_process_whole(host: Hyper):
    data = bytes(range(256)) * 40_000
    finished = host.run("run", "--rm", "-i", BUSYBOX, "md5sum", stdin=data)

    assert finished.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()


def test_the_environment_is_merged_over_the_images(host: Hyper):
    lines = host.ok("run", "--rm", "-e", "A=1", "-e", "FLAVOUR=mine", BUSYBOX, "env").splitlines()
    assert {"A=1", "FLAVOUR=mine", "PATH=/bin:/usr/bin", "HOME=/root"} <= set(lines)


def test_the_guest_has_an_address_a_route_and_its_names(host: Hyper):
    script = f"ip -4 addr show eth0; ip route; cat /etc/hosts; hostname; ping -c 1 -W 5 {host.gateway}"
    output = host.ok(
        "run",
        "--rm",
        "--hostname",
        "box.example.org",
        "--add-host",
        "db:10.9.8.7",
        BUSYBOX,
        "sh",
        "-c",
        script,
    )
    assert "inet 10.213." in output
    assert f"default via {host.gateway}" in output
    assert "10.9.8.7\tdb" in output
    assert "\tbox.example.org box\n" in output
    assert "\nbox.example.org\n" in output
    assert "1 packets received" in output


def test_network_none_leaves_only_loopback(host: Hyper):
    assert host.ok("run", "--rm", "--network", "none", BUSYBOX, "ls", "/sys/class/net") == "lo"


def test_a_container_is_confined_as_docker_confines(host: Hyper):
    status = host.ok(
        "run", "--rm", BUSYBOX, "grep", "-E", "CapBnd|CapEff|Seccomp:|NoNewPrivs", "/proc/self/status"
    )
    fields = dict(line.split(":\t") for line in status.splitlines())
    assert fields["CapEff"] == fields["CapBnd"] == "00000000a80425fb"  # Docker's default set
    assert fields["Seccomp"] == "2"
    refused = host.run("run", "--rm", BUSYBOX, "sh", "-c", "unshare -U true || mount -t tmpfs none /mnt")
    assert refused.returncode != 0
    masked = (
        "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname || echo ro"
    )
    assert host.ok("run", "--rm", BUSYBOX, "sh", "-c", masked).splitlines()[-3:] == ["0", "0", "ro"]


def test_options_reach_the_process(host: Hyper):
    output = host.ok(
        "run", "--rm", "--read-only", "--tmpfs", "/scratch:size=1m", "--ulimit", "nofile=77:88", "--cap-drop", "ALL",
        "--cap-add", "CHOWN", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1000", "-w", "/scratch",
        "--security-opt", "no-new-privileges", "--shm-size", "8m", "--init", "-u", "1000:29", BUSYBOX, "sh", "-c",
        "pwd; touch /x || echo ro; touch /scratch/x && echo rw; ulimit -n; grep CapBnd /proc/self/status; "
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep NoNewPrivs /proc/self/status; "
        "df -k /dev/shm | tail -1; id -g; echo pid $$",
    )  # fmt: skip
    lines = output.splitlines()
    assert lines[:4] == ["/scratch", "ro", "rw", "77"]
    assert lines[4].endswith("0000000000000001")
    assert lines[5] == "1000"
    assert lines[6].endswith("1")
    assert " 8192 " in lines[7]
    assert lines[8] == "29"
    assert lines[9] != "pid 1"


def test_privileged_means_all_of_it_inside_the_vm(host: Hyper):
    status = host.ok(
        "run", "--rm", "--privileged", BUSYBOX, "sh", "-c", "mount -t tmpfs none /tmp && ls /dev | wc -l"
    )
    assert int(status) > 15


def test_cpus_and_memory_are_the_vms(host: Hyper):
    output = host.ok(
        "run", "--rm", "--cpus", "2", "-m", "300m", BUSYBOX, "sh", "-c", "nproc; grep MemTotal /proc/meminfo"
    )
    cpus, memory = output.splitlines()
    assert cpus == "2"
    assert 230_000 < int(memory.split()[1]) < 300 * 1024


def test_out_of_memory_is_called_that(host: Hyper, name: str):
    finished = host.run("run", "--name", name, "-m", "128m", BUSYBOX, "tail", "/dev/zero")
    assert finished.returncode == 137
    assert host.ok("inspect", "-f", "{{.State.OOMKilled}}", name) == "true"
