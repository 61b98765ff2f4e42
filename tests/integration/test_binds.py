# SPDX-License-Identifier: Apache-2.0
"""Directories and files of the host in real guests: what each side sees, what a guest cannot, what a kill leaves."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperd.model.vm import HOT_PLUG_DEVICES
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
# probe flock|fcntl FILE [HELD]: 1 when somebody has the lock; with HELD it makes that file and keeps it.
# probe inotify DIRECTORY TOLD: writes to TOLD what is made there.
PROBE = """
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <unistd.h>
int main(int count, char **words) {
    if (!strcmp(words[1], "inotify")) {
        char buffer[4096];
        int watch = inotify_init();
        inotify_add_watch(watch, words[2], IN_CREATE);
        int told = open(words[3], O_CREAT | O_WRONLY, 0600);
        for (;;) {
            ssize_t size = read(watch, buffer, sizeof buffer);
            for (char *at = buffer; at < buffer + size;) {
                struct inotify_event *event = (struct inotify_event *)at;
                write(told, event->name, strlen(event->name));
                at += sizeof *event + event->len;
            }
        }
    }
    int file = open(words[2], O_CREAT | O_RDWR, 0600);
    struct flock whole = {.l_type = F_WRLCK};
    if (strcmp(words[1], "flock") ? fcntl(file, F_SETLK, &whole) : flock(file, LOCK_EX | LOCK_NB))
        return 1;
    if (count > 3) {
        close(open(words[3], O_CREAT, 0600));
        pause();
    }
    return 0;
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    (place / "below").mkdir(parents=True)
    (place / "file").write_text("content\n")
    (tmp_path / "secret").write_text("secret\n")
    return place


def test_both_sides_see_what_the_other_writes_owners_and_all(host: Hyper, name: str, source: Path):
    os.chown(source / "file", 1234, 5678)
    host.ok("run", "-d", "--name", name, "-v", f"{source}:/x", BUSYBOX, "sleep", "600")
    assert host.ok("inspect", "-f", "{{.Start.Path}}", name) == "template"
    assert host.ok("exec", name, "stat", "-c", "%u:%g %s", "/x/file") == "1234:5678 8"
    host.ok(
        "exec", name, "sh", "-c",
        "mkdir /x/d && echo more > /x/d/new && chown 77:88 /x/d/new && chmod 640 /x/d/new"
        " && ln /x/d/new /x/d/hard && ln -s ../file /x/d/soft && mv /x/file /x/moved && mkfifo /x/pipe",
    )  # fmt: skip
    status = (source / "d/new").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_nlink) == (77, 88, 0o640, 2)
    assert (source / "d/soft").readlink() == Path("../file")
    assert (source / "moved").read_text() == "content\n"
    (source / "moved").write_text("changed on the host\n")
    # What was cached of it, its size among that, counts for a second.
    wait_until(lambda: host.ok("exec", name, "cat", "/x/moved") == "changed on the host", "it is seen")
    host.ok("exec", name, "cp", "/bin/busybox", "/x/echo")
    ran = host.run("exec", name, "/x/echo", "run")
    if "no program is run from a share under emulation" in host.ok("inspect", "-f", "{{.Start.Note}}", name):
        assert (ran.returncode, b"permission denied" in ran.stderr.lower()) == (126, True)
    else:
        assert ran.stdout == b"run\n"
    shown = host.ok(
        "inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}}{{end}}", name
    )
    assert shown == f"bind {source} /x true"


def test_read_only_and_a_single_file(host: Hyper, name: str, source: Path):
    (source.parent / "link").symlink_to(source / "file")
    binds = (
        "-v",
        f"{source}:/x:ro",
        "-v",
        f"{source}/file:/etc/one:z",
        "-v",
        f"{source.parent}/link:/etc/two:ro",
    )
    host.ok("run", "-d", "--name", name, *binds, BUSYBOX, "sleep", "600")
    for command in (
        "touch /x/new",
        "echo x > /x/file",
        "rm /x/file",
        "chmod 777 /x",
        "touch /x/below/new",
        "echo x > /etc/two",
    ):
        assert host.run("exec", name, "sh", "-c", command).returncode != 0, command
    # Remounted by who may: what serves it does not write.
    host.run("exec", "--privileged", name, "mount", "-o", "remount,rw,bind", "/x")
    refused = host.run("exec", "--privileged", name, "touch", "/x/new")
    assert b"Read-only file system" in refused.stderr
    assert sorted(path.name for path in source.iterdir()) == ["below", "file"]
    host.ok("exec", name, "sh", "-c", "cat /etc/two; echo changed > /etc/one")
    assert (source / "file").read_text() == "changed\n"
    assert (
        host.run("exec", name, "mv", "/etc/one", "/etc/other").returncode != 0
    )  # as with Docker: it is a mount


def test_links_of_a_guest_lead_nowhere_on_the_host(host: Hyper, name: str, source: Path):
    (source / "absolute").symlink_to(source.parent / "secret")
    (source / "relative").symlink_to("../secret")
    host.ok("run", "-d", "--name", name, "--privileged", "-v", f"{source}:/x", BUSYBOX, "sleep", "600")
    for link in ("absolute", "relative", "made", "../secret", "below/../../secret"):
        host.run("exec", name, "ln", "-s", str(source.parent / "secret"), "/x/made")
        assert host.run("exec", name, "cat", f"/x/{link}").returncode != 0, link
    assert (source / "made").is_symlink()
    # Nor is a device of the host's made or opened for it, privileged or not.
    assert host.run("exec", name, "mknod", "/x/disk", "b", "254", "0").returncode != 0
    assert not (source / "disk").exists()


def test_what_two_containers_on_one_directory_can_rely_on(host: Hyper, name: str, source: Path):
    first, second = f"{name}-1", f"{name}-2"
    for each in (first, second):
        host.ok("run", "-d", "--name", each, "-v", f"{source}:/x", BUSYBOX, "sleep", "600")
    (source / "probe.c").write_text(PROBE)
    subprocess.run(["gcc", "-static", "-o", source / "probe", source / "probe.c"], check=True)
    for each in (first, second):
        host.ok(
            "exec", each, "cp", "/x/probe", "/probe"
        )  # from a share itself nothing is run under emulation
    # A lock is the guest's own, as docs/storage.md says: within one it holds, the other has it too.
    for kind in ("flock", "fcntl"):
        host.ok("exec", "-d", first, "/probe", kind, f"/x/{kind}", f"/x/{kind}-held")
        wait_until((source / f"{kind}-held").exists, "the first has it")
        assert host.run("exec", first, "/probe", kind, f"/x/{kind}").returncode == 1
        assert host.run("exec", second, "/probe", kind, f"/x/{kind}").returncode == 0
    # What is one step on the host is one for both.
    host.ok("exec", first, "mkdir", "/x/mutex")
    assert b"File exists" in host.run("exec", second, "mkdir", "/x/mutex").stderr
    # Of what another changes one is told nothing; of its own changes it is.
    host.ok("exec", "-d", second, "/probe", "inotify", "/x", "/told")
    wait_until(lambda: host.run("exec", second, "test", "-e", "/told").returncode == 0, "it watches")
    (source / "by-the-host").touch()
    host.ok("exec", first, "touch", "/x/by-the-other")
    host.ok("exec", second, "ls", "/x/by-the-host", "/x/by-the-other")
    host.ok("exec", second, "touch", "/x/by-itself")
    wait_until(lambda: "by-itself" in host.ok("exec", second, "cat", "/told"), "it is told")
    assert "by-the" not in host.ok("exec", second, "cat", "/told")


def test_a_shared_volume_is_written_to_by_two_and_outlives_them(host: Hyper, name: str):
    host.ok("volume", "create", "--shared", name)
    try:
        for each in (f"{name}-1", f"{name}-2"):
            host.ok("run", "-d", "--name", each, "-v", f"{name}:/pool", BUSYBOX, "sleep", "600")
            host.ok("exec", each, "sh", "-c", "echo $HOSTNAME >> /pool/who; chown 7:7 /pool/who")
        told = host.ok("exec", f"{name}-1", "cat", "/pool/who").split()
        assert len(told) == 2
        assert host.run("volume", "rm", name).returncode == 4
        host.ok("rm", "-f", f"{name}-1", f"{name}-2")
        reader = host.ok(
            "run",
            "--rm",
            "-v",
            f"{name}:/pool:ro",
            BUSYBOX,
            "sh",
            "-c",
            "stat -c %u /pool/who; touch /pool/x || true",
        )
        assert reader == "7"
        assert host.run("volume", "resize", name, "1g").returncode == 9
    finally:
        left = host.ok("ps", "-aq").split()
        host.run("rm", "-f", *left)
        host.ok("volume", "rm", name)


def test_ids_that_are_mapped(host: Hyper, name: str, source: Path):
    os.chown(source, 1000, 1000)
    bind = f"{source}:/x:idmap=uids=1000-0-1;gids=1000-0-1"
    assert (
        host.ok(
            "run", "--rm", "--name", name, "-v", bind, BUSYBOX, "sh", "-c", "stat -c %u:%g /x; touch /x/new"
        )
        == "0:0"
    )
    assert ((source / "new").stat().st_uid, (source / "new").stat().st_gid) == (1000, 1000)


def test_what_is_not_there_and_what_may_not_be(host: Hyper, name: str, source: Path):
    missing = source / "a/b"
    refused = host.run("run", "--rm", "--mount", f"type=bind,src={missing},dst=/x", BUSYBOX, "true")
    assert refused.returncode == 125
    assert f"bind source path does not exist: {missing}".encode() in refused.stderr
    host.ok("run", "--rm", "-v", f"{missing}:/x", BUSYBOX, "touch", "/x/made")
    assert (missing / "made").exists()
    for path, why in (
        (host.state_dir / "volumes", b"hyperd's own"), (host.run_dir, b"hyperd's own"), (Path("/"), b"hyperd's own"),
        (host.run_dir / "hyperd.sock", b"hyperd's own"), (Path("/dev/null"), b"is a device"),
    ):  # fmt: skip
        refused = host.run("create", "--name", name, "-v", f"{path}:/x", BUSYBOX, "true")
        assert why in refused.stderr, path
    assert host.ok("ps", "-aq") == ""


def test_what_would_copy_it_is_refused_and_files_of_it_are_not_the_container_s(
    host: Hyper, name: str, source: Path
):
    host.ok("run", "-d", "--name", name, "-v", f"{source}:/x", BUSYBOX, "sleep", "600")
    for command in (("snapshot", "create", name), ("fork", name), ("hibernate", name)):
        refused = host.run(*command)
        assert (refused.returncode, b"has directories of the host" in refused.stderr) == (9, True), command
    assert "/x/file" not in host.ok("diff", name)
    assert host.run("cp", f"{name}:/x/file", "-").returncode == 0
    host.ok("stop", "-t", "1", name)
    refused = host.run("cp", f"{name}:/x/file", "-")
    assert (refused.returncode, str(source).encode() in refused.stderr) == (9, True)


def test_more_shares_than_ports_boot(host: Hyper, name: str, source: Path):
    binds = [part for n in range(HOT_PLUG_DEVICES + 1) for part in ("-v", f"{source}:/m{n}")]
    host.ok("run", "-d", "--name", name, *binds, BUSYBOX, "sleep", "600")
    assert host.ok("inspect", "-f", "{{.Start.Path}}", name) == "cold"
    assert host.ok("exec", name, "sh", "-c", "cat /m*/file | wc -l") == str(HOT_PLUG_DEVICES + 1)


@pytest.fixture(scope="module")
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that is killed, and shares only what it is told to."""
    allowed = layouts.parent / "allowed"
    allowed.mkdir()
    with hyper(accel="auto", settings={"storage.bind_allow": str(allowed)}) as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        yield host


def test_shares_outlive_hyperd_and_nothing_outlives_its_vm(
    own: Hyper, name: str, layouts: Path, tmp_path: Path
):
    refused = own.run("create", "-v", f"{tmp_path}:/x", BUSYBOX, "true")
    assert b"[storage] bind_allow" in refused.stderr
    place = layouts.parent / "allowed" / name
    own.ok("run", "-d", "--name", name, "-v", f"{place}:/x", BUSYBOX, "sleep", "600")
    assert len(own.share_processes()) == 2
    own.kill_daemon()
    own.start()
    own.ok("exec", name, "touch", "/x/after-hyperd")
    assert (place / "after-hyperd").exists()
    # QEMU alone: who serves it ends with it.
    os.kill(min(own.qemu_processes()), signal.SIGKILL)
    wait_until(lambda: not own.share_processes(), "virtiofsd is gone")
    wait_until(lambda: "VM lost" in own.ok("ps", "-a"), "it is seen")
    own.ok("start", name)
    # QEMU and hyperd.
    own.kill_daemon()
    os.kill(min(own.qemu_processes()), signal.SIGKILL)
    wait_until(lambda: not own.share_processes(), "virtiofsd is gone")
    own.start()
    wait_until(lambda: "VM lost" in own.ok("ps", "-a"), "it is seen")
    own.ok("rm", "-f", name)
    assert own.leaks() == []


def test_a_share_that_is_lost_is_told_and_the_rest_goes_on(own: Hyper, name: str, layouts: Path):
    place = layouts.parent / "allowed" / name
    own.ok("run", "-d", "--name", name, "-v", f"{place}:/x", BUSYBOX, "sleep", "600")
    os.kill(min(own.share_processes()), signal.SIGKILL)
    wait_until(lambda: "in trouble" in own.ok("ps"), "ps says it")
    assert "what is shared at /x is not served any more" in own.ok("inspect", "-f", "{{.State.Error}}", name)
    assert own.ok("exec", name, "echo", "alive") == "alive"
    own.ok("rm", "-f", name)
    assert own.leaks() == []
