# SPDX-License-Identifier: Apache-2.0
"""Files of real containers, one that runs and one that has stopped: commit, diff, export, cp."""

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import container_pb2_grpc
from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
CALL_TIMEOUT_S = 300.0
# Adds, changes, deletes; a directory in the place of another one; a link to a file.
CHANGE = """
mkdir /new && echo added > /new/file && ln /new/file /new/twin && ln -s ../etc/passwd /new/link
echo more >> /etc/passwd
rm /etc/group
rm -rf /home && mkdir /home && echo other > /home/other
"""
KINDS = {pb.CHANGE_KIND_ADDED: "A", pb.CHANGE_KIND_MODIFIED: "C", pb.CHANGE_KIND_DELETED: "D"}


@dataclass
class Files:
    """The calls about files, of one daemon."""

    stub: Any

    def diff(self, name: str) -> dict[str, str]:
        answers = self.stub.ListChanges(pb.ListChangesRequest(container=name), timeout=CALL_TIMEOUT_S)
        return {change.path.decode(): KINDS[change.kind] for answer in answers for change in answer.changes}

    def commit(self, name: str, reference: str, *changes: str, no_pause: bool = False) -> str:
        request = pb.CommitContainerRequest(
            container=name, reference=reference, changes=changes, no_pause=no_pause
        )
        *_, last = self.stub.CommitContainer(request, timeout=CALL_TIMEOUT_S)
        return str(last.image_id)

    def export(self, name: str) -> tarfile.TarFile:
        answers = self.stub.ExportContainer(pb.ExportContainerRequest(container=name), timeout=CALL_TIMEOUT_S)
        return _tar(answer.data for answer in answers)

    def read(self, name: str, path: str) -> tuple[pb.PathStat, tarfile.TarFile]:
        request = pb.ReadPathRequest(container=name, path=path.encode())
        first, *rest = self.stub.ReadPath(request, timeout=CALL_TIMEOUT_S)
        return first.stat, _tar(answer.data for answer in rest)

    def write(self, name: str, path: str, content: bytes) -> None:
        options = pb.WritePathOptions(container=name, path=path.encode())
        pieces = [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)]
        requests = [
            pb.WritePathRequest(options=options),
            *(pb.WritePathRequest(data=piece) for piece in pieces),
            pb.WritePathRequest(end=True),
        ]
        self.stub.WritePath(iter(requests), timeout=CALL_TIMEOUT_S)


def _tar(pieces: Iterable[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(pieces)))


@contextlib.contextmanager
def connected(host: Hyper) -> Iterator[Files]:
    with grpc.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        yield Files(container_pb2_grpc.ContainerServiceStub(channel))


@pytest.fixture
def files(host: Hyper) -> Iterator[Files]:
    with connected(host) as calls:
        yield calls


@pytest.fixture(params=["running", "stopped"])
def changed(request: pytest.FixtureRequest, host: Hyper, name: str) -> str:
    """A container that has changed its files."""
    after = "echo ready; sleep 1000" if request.param == "running" else ""
    host.ok("run", "-d", "--name", name, "-e", "MARK=1", BUSYBOX, "sh", "-c", CHANGE + after)
    if request.param == "running":
        wait_until(lambda: "ready" in host.ok("logs", name), "its files are changed")
    else:
        assert host.ok("wait", name) == "0"
    return name


def archive(**members: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def content(tar: tarfile.TarFile, name: str) -> bytes:
    found = tar.extractfile(name)
    assert found is not None
    return found.read()


def test_diff_names_what_was_added_changed_and_deleted(files: Files, changed: str):
    found = files.diff(changed)
    assert found["/new"] == found["/new/file"] == found["/new/twin"] == found["/new/link"] == "A"
    assert found["/etc/passwd"] == "C"
    assert found["/etc/group"] == "D"
    assert found["/home/other"] == "A"
    assert "/bin/sh" not in found
    assert not any(path.startswith(("/proc", "/sys", "/dev/")) for path in found)


def test_export_is_the_root_as_the_container_sees_it(files: Files, changed: str):
    tar = files.export(changed)
    names = {name.removeprefix("./").strip("/") for name in tar.getnames()}
    assert {"new/file", "new/link", "home/other", "bin/busybox"} <= names
    assert "etc/group" not in names
    assert not any(name.startswith("proc/") for name in names)


def test_a_path_is_read_and_written(host: Hyper, files: Files, changed: str):
    stat, tar = files.read(changed, "/new")
    assert (stat.name, stat.mode & 0o170000) == (b"new", 0o040000)
    assert content(tar, "new/file") == b"added\n"
    files.write(changed, "/new", archive(dropped=b"x" * 3_000_000))
    _, tar = files.read(changed, "/new/dropped")
    assert len(content(tar, "dropped")) == 3_000_000
    with pytest.raises(grpc.RpcError) as caught:
        files.read(changed, "/absent")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_what_is_committed_runs_and_has_the_files(host: Hyper, files: Files, changed: str, name: str):
    image = f"test.local/{name}:1"
    files.commit(changed, image, 'CMD ["cat", "/new/file"]')
    try:
        assert host.ok("run", "--rm", image) == "added"
        said = "stat -c %h /new/file; ls /home; ls /etc/group; tail -n 1 /etc/passwd; echo $MARK"
        shown = host.run("run", "--rm", image, "sh", "-c", said).stdout.decode().split()
        assert shown == ["2", "other", "more", "1"]
    finally:
        host.ok("rmi", "-f", image)


def test_a_container_that_never_ran_has_changed_nothing_and_keeps_what_is_put_there(
    host: Hyper, files: Files, name: str
):
    host.ok("create", "--name", name, BUSYBOX, "cat", "/tmp/note")
    assert files.diff(name) == {}
    files.write(name, "/tmp", archive(note=b"hello"))
    assert host.ok("start", "-a", name) == "hello"


def test_two_commits_of_the_same_files_are_the_same_layer(host: Hyper, files: Files, changed: str, name: str):
    first, second = f"test.local/{name}:a", f"test.local/{name}:b"
    files.commit(changed, first)
    files.commit(changed, second, no_pause=True)
    try:
        form = "{{json .RootFS.Layers}}"
        layers = [host.ok("inspect", "-f", form, image) for image in (first, second)]
        assert layers[0] == layers[1]
    finally:
        host.ok("rmi", "-f", first, second)


def test_a_stopped_one_starts_with_what_was_written(host: Hyper, files: Files, name: str):
    host.ok("run", "--name", name, BUSYBOX, "sh", "-c", "cat /tmp/note 2>/dev/null; true")
    files.write(name, "/tmp", archive(note=b"durable"))
    assert host.ok("start", "-a", name) == "durable"


def test_a_daemon_killed_while_files_are_open_leaves_nothing(layouts: Path):
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        host.ok("run", "--name", "box", BUSYBOX, "sh", "-c", "head -c 50000000 /dev/urandom > /big")
        with connected(host) as files:
            request = pb.ExportContainerRequest(container="box")
            call = files.stub.ExportContainer(request, timeout=CALL_TIMEOUT_S)
            next(call)  # and no more is read: its VM is there
            assert host.qemu_processes()
            host.kill_daemon()
        host.start()
        wait_until(lambda: not host.qemu_processes(), "the VM is gone")
        assert "Exited (0)" in host.ok("ps", "-a")
        with connected(host) as files:
            assert "big" in files.export("box").getnames()
        host.ok("rm", "box")
        host.require_no_leaks()
