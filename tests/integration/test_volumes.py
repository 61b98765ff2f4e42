# SPDX-License-Identifier: Apache-2.0
"""Volumes in real guests: what is written outlives the container, whoever is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperd.model.vm import HOT_PLUG_DEVICES
from tests import images
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
FILLED = "test.local/filled"


@pytest.fixture(autouse=True)
def no_volumes(host: Hyper) -> Iterator[None]:
    yield
    left = host.ok("ps", "-aq").split()
    if left:
        host.run("rm", "-f", "-v", *left)
    volumes = host.ok("volume", "ls", "-q").split()
    if volumes:
        host.run("volume", "rm", *volumes)
    assert not files_of(host)


def files_of(host: Hyper) -> list[Path]:
    return sorted((host.state_dir / "volumes").glob("[0-9a-f]*"))


def path_of(host: Hyper, volume: str) -> Path:
    return Path(host.ok("volume", "inspect", "-f", "{{.Mountpoint}}", volume))


def qemu_pid(host: Hyper, name: str) -> int:
    return int(host.ok("inspect", "-f", "{{.State.Pid}}", name))


def require_sound(disk: Path) -> None:
    """As a guest's kernel would: the journal first, then all of it."""
    finished = subprocess.run(["e2fsck", "-p", disk], capture_output=True, check=False)
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr
    finished = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_what_is_written_outlives_the_container_and_starts_stay_fast(host: Hyper, name: str):
    host.ok("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "sh", "-c", "echo kept > /data/file")
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    assert host.ok("exec", name, "cat", "/data/file") == "kept"
    assert host.ok("exec", name, "ls", "-A", "/data") == "file"  # no lost+found
    path, note = host.ok("inspect", "-f", "{{.Start.Path}}|{{.Start.Note}}", name).split("|")
    assert path in ("spare", "template")
    assert note == ""
    mount = host.ok(
        "inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}", name
    )
    assert mount == f"volume {name} /data true"
    assert host.ok("ps", "-q", "--filter", f"volume={name}")
    refused = host.run("volume", "rm", name)
    assert refused.returncode == 4
    assert f"is in use by container {name}".encode() in refused.stderr


def test_more_volumes_than_ports_boot_and_say_why(host: Hyper, name: str):
    numbers = range(HOT_PLUG_DEVICES + 1)
    volumes = [part for n in numbers for part in ("-v", f"{name}{n}:/v{n}")]
    host.ok("run", "-d", "--name", name, *volumes, BUSYBOX, "sleep", "600")
    host.ok("exec", name, "touch", *(f"/v{n}/file" for n in numbers))
    assert host.ok("exec", name, "grep", "-c", "^/dev/vd.* /v. ext4", "/proc/mounts") == str(len(numbers))
    assert host.ok("inspect", "-f", "{{.Start.Path}}", name) == "cold"
    assert "more than a template has room for" in host.ok("inspect", "-f", "{{.Start.Note}}", name)


def test_one_writes_or_many_read(host: Hyper, name: str):
    host.ok("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "sh", "-c", "echo kept > /data/file")
    for reader in ("a", "b"):
        host.ok("run", "-d", "--name", f"{name}-{reader}", "-v", f"{name}:/data:ro", BUSYBOX, "sleep", "600")
        assert host.ok("exec", f"{name}-{reader}", "cat", "/data/file") == "kept"
        assert host.run("exec", f"{name}-{reader}", "touch", "/data/new").returncode == 1
    refused = host.run("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "true")
    assert refused.returncode == 125
    assert f"container {name}-a has it".encode() in refused.stderr
    host.ok("rm", "-f", f"{name}-a", f"{name}-b")
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    refused = host.run("run", "--rm", "-v", f"{name}:/data:ro", BUSYBOX, "true")
    assert f"container {name} writes to it".encode() in refused.stderr
    for command in (("snapshot", "create", name), ("fork", name), ("hibernate", name)):
        refused = host.run(*command)
        assert refused.returncode == 9, command
        assert b"has volumes" in refused.stderr


def test_an_images_volume_is_filled_with_what_the_image_has(host: Hyper, name: str, tmp_path: Path):
    image = images.busybox_image(Volumes={"/srv": {}}, Cmd=["sleep", "600"])
    images.write_layout(image, tmp_path / "filled", f"{FILLED}:latest")
    host.ok("pull", "-q", f"oci:{tmp_path}/filled:{FILLED}:latest")
    try:
        host.ok("run", "-d", "--name", name, FILLED)
        assert "mounted" in host.ok(
            "exec", name, "sh", "-c", "grep -q ' /srv ext4 ' /proc/mounts && echo mounted"
        )
        inside = host.ok(
            "exec", name, "sh", "-c", "cd /srv; stat -c '%n %a %u:%g %Y' . $(find . -type f | sort)"
        )
        direct = host.ok(
            "run", "--rm", "--tmpfs", "/none", "-v", f"{name}:/other", "--entrypoint", "", FILLED,
            "sh", "-c", "cd /srv; stat -c '%n %a %u:%g %Y' . $(find . -type f | sort)",
        )  # fmt: skip
        assert inside == direct
        assert len(inside.splitlines()) > 1
        volume = host.ok("inspect", "-f", "{{(index .Mounts 0).Name}}", name)
        assert len(volume) == 64
        host.ok("exec", name, "sh", "-c", "echo new > /srv/new; rm /srv/replaced")
        host.ok("stop", "-t", "1", name)
        host.ok("start", name)
        assert "new" in host.ok("exec", name, "ls", "/srv").split()
        assert "replaced" not in host.ok("exec", name, "ls", "/srv").split()
        host.ok("rm", "-f", name)
        assert volume in host.ok("volume", "ls", "-q").split()
        assert volume in host.ok("volume", "prune", "-f")
    finally:
        host.run("rm", "-f", "-v", name)
        host.ok("rmi", FILLED)


def test_anonymous_volumes_go_with_rm(host: Hyper, name: str):
    host.ok("run", "--rm", "-v", "/data", BUSYBOX, "touch", "/data/file")
    assert not files_of(host)
    host.ok("create", "--name", name, "-v", "/data", "-v", f"{name}:/kept", BUSYBOX)
    host.ok("create", "--name", f"{name}-2", "--volumes-from", f"{name}:ro", BUSYBOX)
    rw = host.ok("inspect", "-f", "{{range .Mounts}}{{.RW}} {{end}}", f"{name}-2")
    assert rw.split() == ["false", "false"]
    host.ok("rm", "-v", name)
    assert len(files_of(host)) == 2  # the other one still has both
    host.ok("rm", "-v", f"{name}-2")
    assert host.ok("volume", "ls", "-q") == name


def test_synced_data_survives_the_death_of_qemu(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    write = "for n in 1 2 3; do dd if=/dev/urandom of=/data/$n bs=64k count=16 conv=fsync; done"
    script = f"{write}; cd /data; md5sum 1 2 3"
    sums = host.ok("exec", name, "sh", "-c", script)
    host.ok("exec", "-d", name, "sh", "-c", "while :; do echo x >> /data/busy; done")
    disk = path_of(host, name)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert disk.stat().st_uid == os.stat(f"/proc/{qemu_pid(host, name)}").st_uid  # noqa: PTH116
    os.kill(qemu_pid(host, name), signal.SIGKILL)
    wait_until(lambda: host.ok("inspect", "-f", "{{.State.Status}}", name) == "failed", "it is lost")
    assert disk.stat().st_uid == 0
    copy = disk.with_name("copy.img")
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    require_sound(copy)
    copy.unlink()
    host.ok("start", name)
    assert host.ok("exec", name, "sh", "-c", "cd /data; md5sum 1 2 3") == sums


def test_space_freed_in_the_guest_comes_back(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", "--privileged", BUSYBOX, "sleep", "600")
    disk = path_of(host, name)
    host.ok("exec", name, "sh", "-c", "dd if=/dev/urandom of=/data/big bs=1M count=64 conv=fsync")
    full = disk.stat().st_blocks * 512
    host.ok("exec", name, "sh", "-c", "rm /data/big; sync; fstrim /data")
    assert disk.stat().st_blocks * 512 < full - (60 << 20)


def test_a_volume_grows_while_it_is_written_to_and_at_its_next_mount(host: Hyper, name: str):
    host.ok("volume", "create", name, "--size", "64m")
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")

    def mib() -> int:
        return int(host.ok("exec", name, "sh", "-c", "df -m /data | tail -1").split()[1])

    assert mib() < 64
    host.ok("exec", name, "sh", "-c", "echo kept > /data/file")
    assert host.ok("volume", "resize", name, "512m") == name
    assert 400 < mib() < 512
    refused = host.run("volume", "resize", name, "64m")
    assert (refused.returncode, b"does not become smaller" in refused.stderr) == (2, True)
    host.ok("stop", "-t", "1", name)
    assert host.ok("volume", "resize", name, "2g") == name
    host.ok("start", name)
    assert 1800 < mib() < 2048
    assert host.ok("exec", name, "cat", "/data/file") == "kept"
    host.ok("stop", "-t", "1", name)
    require_sound(path_of(host, name))


def test_a_snapshot_of_a_volume_that_is_written_to_is_whole(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    host.ok("exec", name, "sh", "-c", "echo before > /data/file")
    writes = "n=0; while :; do n=$((n+1)); echo $n > /data/new; mv /data/new /data/busy; done"
    host.ok("exec", "-d", name, "sh", "-c", writes)
    wait_until(lambda: host.run("exec", name, "test", "-s", "/data/busy").returncode == 0, "it writes")
    snapshot = host.ok("snapshot", "create", "--volume", name, "--name", f"{name}-s")
    shown = host.ok("snapshot", "inspect", "-f", "{{.Volume}} {{.Consistency}}", snapshot)
    assert shown == f"{name} frozen"
    # Frozen, and not as after a power cut: nothing is left to be played.
    (disk,) = (host.state_dir / "volumes" / ".snapshots").glob(f"{snapshot}/disk.img")
    finished = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    host.ok("exec", name, "sh", "-c", "echo after > /data/file")
    busy = int(host.ok("exec", name, "cat", "/data/busy"))
    wait_until(lambda: int(host.ok("exec", name, "cat", "/data/busy") or 0) > busy, "it writes again")
    try:
        host.ok("volume", "create", f"{name}-c", "--snapshot", f"{name}-s")
        assert host.ok("run", "--rm", "-v", f"{name}-c:/data", BUSYBOX, "cat", "/data/file") == "before"
        assert f"volume {name}" in host.ok("snapshot", "ls")
    finally:
        host.ok("snapshot", "rm", f"{name}-s")
    assert not list((host.state_dir / "volumes" / ".snapshots").iterdir())


def test_an_xfs_is_filled_grows_and_is_copied_under_its_container(host: Hyper, name: str, tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    host.ok("volume", "create", name, "--fs", "xfs", "--size", "320m")
    assert host.ok("volume", "inspect", "-f", "{{.Filesystem}}", name) == "xfs"
    host.ok("volume", "init", name, str(tmp_path))
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")

    def mib() -> int:
        return int(host.ok("exec", name, "df", "-m", "/data").splitlines()[-1].split()[1])

    assert host.ok("exec", name, "sh", "-c", "grep ' /data ' /proc/mounts | cut -d' ' -f3") == "xfs"
    assert mib() < 320
    host.ok("volume", "resize", name, "1g")
    assert 800 < mib() < 1024
    writes = "n=0; while :; do n=$((n+1)); echo $n > /data/new; mv /data/new /data/busy; done"
    host.ok("exec", "-d", name, "sh", "-c", writes)
    wait_until(lambda: host.run("exec", name, "test", "-s", "/data/busy").returncode == 0, "it writes")
    snapshot = host.ok("snapshot", "create", "--volume", name, "--name", f"{name}-s")
    try:
        assert host.ok("snapshot", "inspect", "-f", "{{.Consistency}}", snapshot) == "frozen"
        host.ok("volume", "create", f"{name}-c", "--snapshot", snapshot)
    finally:
        host.ok("snapshot", "rm", f"{name}-s")
    # Of one UUID, both in one guest.
    host.ok("stop", "-t", "1", name)
    both = ("-v", f"{name}:/data", "-v", f"{name}-c:/copy")
    assert host.ok("run", "--rm", *both, BUSYBOX, "cat", "/data/file", "/copy/file") == "keptkept"
    for volume in (name, f"{name}-c"):
        disk = path_of(host, volume)
        finished = subprocess.run(["xfs_repair", "-n", disk], capture_output=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    refused = host.run("volume", "create", f"{name}-t", "--fs", "xfs", "--size", "64m")
    assert (refused.returncode, b"not between 300 MiB" in refused.stderr) == (2, True)


def test_a_volume_is_filled_sent_away_and_back_without_a_container(host: Hyper, name: str, tmp_path: Path):
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "deep" / "page").write_text("hello")
    (tmp_path / "site" / "evil").symlink_to("/etc/passwd")
    host.ok("volume", "create", name, "--size", "64m")
    host.ok("volume", "init", name, str(tmp_path / "site"))
    show = ("sh", "-c", "cd /data; cat deep/page; readlink evil; stat -c %u deep; ls -A")
    expected = "hello/etc/passwd\n0\ndeep\nevil"
    assert host.ok("run", "--rm", "-v", f"{name}:/data", BUSYBOX, *show) == expected
    require_sound(path_of(host, name))
    host.ok("volume", "export", name, "-o", str(tmp_path / "out.tar"))
    assert (tmp_path / "out.tar").stat().st_size < 8 << 20
    host.ok("volume", "import", f"{name}-b", "-i", str(tmp_path / "out.tar"))
    assert host.ok("run", "--rm", "-v", f"{name}-b:/data", BUSYBOX, *show) == expected
    (tmp_path / "no.tar").write_bytes(b"x" * 4096)
    refused = host.run("volume", "init", name, str(tmp_path / "no.tar"))
    assert refused.returncode == 2, refused.stderr
    (tmp_path / "large").write_bytes(os.urandom(80 << 20))
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "large.tar", "large"], check=True)
    refused = host.run("volume", "init", name, str(tmp_path / "large.tar"))
    assert refused.returncode == 5, refused.stderr
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    refused = host.run("volume", "init", name, str(tmp_path / "site"))
    assert (refused.returncode, f"container {name} has it".encode() in refused.stderr) == (4, True)


@pytest.mark.parametrize("is_running", [True, False])
def test_cp_goes_into_and_out_of_a_volume(host: Hyper, name: str, tmp_path: Path, is_running: bool):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("sent")
    mounts = ("-v", f"{name}:/data", "-v", f"{name}-ro:/ro:ro")
    host.ok("run", "--rm", "-v", f"{name}-ro:/ro", BUSYBOX, "sh", "-c", "echo kept > /ro/file")
    host.ok("run", "-d", "--name", name, *mounts, BUSYBOX, "sleep", "600")
    host.ok("exec", name, "sh", "-c", "mkdir /data/deep; echo there > /data/deep/file")
    if not is_running:
        host.ok("stop", "-t", "1", name)
    host.ok("cp", str(tmp_path / "in"), f"{name}:/data/")
    host.ok("cp", str(tmp_path / "in/file"), f"{name}:/data/deep/sent")
    host.ok("cp", f"{name}:/data", str(tmp_path / "out"))
    found = {
        path.relative_to(tmp_path / "out"): path.read_text()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert {str(path): text for path, text in found.items()} == {
        "in/file": "sent",
        "deep/file": "there\n",
        "deep/sent": "sent",
    }
    host.ok("cp", f"{name}:/ro/file", str(tmp_path / "kept"))
    assert (tmp_path / "kept").read_text() == "kept\n"
    refused = host.run("cp", str(tmp_path / "in/file"), f"{name}:/ro/")
    assert (refused.returncode, b"read-only" in refused.stderr) == (4, True)
    if not is_running:
        require_sound(path_of(host, name))
        other = ("-d", "--name", f"{name}-2", "-v", f"{name}:/data")
        host.ok("run", *other, BUSYBOX, "sleep", "600")
        refused = host.run("cp", f"{name}:/data/in/file", str(tmp_path / "none"))
        assert (refused.returncode, f"container {name}-2".encode() in refused.stderr) == (4, True)


def test_the_size_of_the_writable_disk_is_ones_own(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "--storage-opt", "size=200m", BUSYBOX, "sleep", "600")
    assert host.ok("inspect", "-f", "{{.Start.Path}}", name) == "template"
    total_kib = int(host.ok("exec", name, "sh", "-c", "df -k / | tail -1").split()[1])
    assert 150 << 10 < total_kib < 200 << 10
    assert host.run("run", "--storage-opt", "size=1m", BUSYBOX, "true").returncode == 125


def test_what_cannot_be_meant_is_refused_and_nothing_is_made(host: Hyper):
    for flags in (
        ("-v", "a1:/x", "-v", "b1:/x"),
        ("-v", "a1:/x/../y"),
        ("-v", "a1:/"),
        ("-v", "a1:x"),
        ("-v", "a1:/x:wrong"),
        ("--mount", "type=volume,src=a1"),
        ("--mount", "type=volume,src=a1,dst=/x,volume-driver=nfs"),
        ("--mount", "type=volume,src=a1,dst=/x,volume-opt=size=1k"),
    ):
        assert host.run("create", *flags, BUSYBOX).returncode in (2, 9), flags
    for arguments in (("a1", "--size", "1m"), ("a1", "--fs", "zfs"), ("a1", "--driver", "nfs"), ("../a1",)):
        assert host.run("volume", "create", *arguments).returncode in (2, 9), arguments
    assert not files_of(host)
    assert not host.ok("ps", "-aq")


def test_a_killed_hyperd_loses_no_volume_and_leaks_none(layouts: Path):
    with hyper() as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        host.ok("run", "-d", "--name", "box", "-v", "kept:/data", BUSYBOX, "sleep", "600")
        disk = path_of(host, "kept")
        (half_made := host.state_dir / "volumes" / ("0" * 32 + ".new")).mkdir()
        host.kill_daemon()
        host.start()
        assert not half_made.exists()
        host.ok("exec", "box", "sh", "-c", "echo alive > /data/file; sync")
        assert disk.stat().st_uid != 0
        assert host.run("run", "--rm", "-v", "kept:/data", BUSYBOX, "true").returncode == 125
        pid = qemu_pid(host, "box")
        host.kill_daemon()
        os.kill(pid, signal.SIGKILL)
        host.start()
        wait_until(lambda: host.ok("inspect", "-f", "{{.State.Status}}", "box") == "failed", "it is lost")
        assert disk.stat().st_uid == 0
        assert host.ok("run", "--rm", "-v", "kept:/data", BUSYBOX, "cat", "/data/file") == "alive"
        starting = subprocess.Popen(
            host.argv("run", "--rm", "-v", "new:/data", "-v", "/anon", BUSYBOX, "true")
        )
        wait_until(lambda: len(files_of(host)) == 3, "its volumes are there")
        host.kill_daemon()
        starting.wait(60)
        host.start()
        wait_until(lambda: host.ok("ps", "-aq") == host.ok("ps", "-aqf", "name=box"), "it is removed")
        names = host.ok("volume", "ls", "-q").split()
        assert set(names) <= {"kept", "new"}
        assert len(files_of(host)) == len(names)
        host.ok("rm", "-f", "box")
        began = time.monotonic()
        host.ok("volume", "prune", "-af")
        assert not files_of(host), began
