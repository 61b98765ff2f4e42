# SPDX-License-Identifier: Apache-2.0
"""`hyper volume ...` and the flags about volumes: what is asked of the daemon, what is printed."""

import io
import json

import grpc

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2, volume_pb2
from tests.unit.cli.goldens import asked, golden


def test_a_volume_is_made_with_what_the_flags_say(daemon, hyper):
    result = hyper(
        "volume", "create", "db", "--size", "2g", "--label", "team=web", "--fs", "ext4", "-o", "colour=red"
    )
    assert (result.status, result.out) == (0, "db\n")
    [request] = asked(daemon, volume_pb2.CreateVolumeRequest)
    assert (request.name, request.size_bytes, request.filesystem) == ("db", 2 << 30, "ext4")
    assert (dict(request.labels), dict(request.options)) == ({"team": "web"}, {"colour": "red"})
    hyper("volume", "create", "--name", "other", "-o", "size=1g")
    assert asked(daemon, volume_pb2.CreateVolumeRequest)[1].size_bytes == 1 << 30
    assert hyper("volume", "create").out == "f" * 64 + "\n"
    assert hyper("volume", "create", "a", "--name", "b").status == 2


def test_a_volume_that_many_write_to(daemon, hyper):
    assert hyper("volume", "create", "pool", "--shared").status == 0
    assert asked(daemon, volume_pb2.CreateVolumeRequest)[0].filesystem == "virtiofs"
    assert hyper("volume", "create", "pool", "--shared", "--fs", "ext4").status == 2


def test_a_volume_grows_to_a_size_and_begins_as_a_snapshot(daemon, hyper):
    hyper("volume", "create", "db", "--snapshot", "before")
    assert asked(daemon, volume_pb2.CreateVolumeRequest)[0].snapshot == "before"
    assert hyper("volume", "resize", "db", "40g").out == "db\n"
    [request] = asked(daemon, volume_pb2.ResizeVolumeRequest)
    assert (request.volume, request.size_bytes) == ("db", 40 << 30)
    assert hyper("volume", "resize", "none", "1g").status == 3
    assert hyper("volume", "resize", "db", "large").status == 2
    assert hyper("volume", "resize", "db").status == 2


def test_a_snapshot_is_of_a_container_or_of_a_volume(daemon, hyper):
    result = hyper("snapshot", "create", "--volume", "db", "--name", "before")
    assert (result.status, len(result.out)) == (0, 65)
    [request] = asked(daemon, snapshot_pb2.CreateSnapshotRequest)
    assert (request.container, request.volume, request.name) == ("", "db", "before")
    for arguments in ((), ("web", "--volume", "db")):
        refused = hyper("snapshot", "create", *arguments)
        assert (refused.status, "of a container or of a volume" in refused.err) == (2, True)
    rows = hyper("snapshot", "ls", "--format", "{{.Name}}|{{.Source}}|{{.Memory}}|{{.Size}}").out
    assert rows == "before|volume db||1.4MB\n"
    [document] = json.loads(hyper("snapshot", "inspect", "before").out)
    assert (document["Volume"], document["Consistency"], document["Filesystem"]) == ("db", "frozen", "ext4")
    assert "Compatibility" not in document


def test_volumes_are_listed_and_shown(daemon, hyper, monkeypatch):
    hyper("volume", "create", "db", "--label", "team=web")
    daemon.volumes["db"].users.add(container_id="1" * 64, container_name="web", attached=True)
    now_s = daemon.volumes["db"].created_at.seconds + 3700
    monkeypatch.setattr("time.time", lambda: float(now_s))
    golden("volume-ls.txt", hyper("volume", "ls").out)
    assert hyper("volume", "ls", "-q", "-f", "dangling=false").out == "db\n"
    [request] = asked(daemon, volume_pb2.ListVolumesRequest)[1:]
    assert [(item.key, item.value) for item in request.filters] == [("dangling", "false")]
    assert hyper("volume", "ls", "-f", "colour=red").status == 2
    [document] = json.loads(hyper("volume", "inspect", "db").out)
    assert (document["Name"], document["Driver"], document["Labels"]) == ("db", "local", {"team": "web"})
    assert document["Users"] == [{"Id": "1" * 64, "Name": "web", "RW": True, "Attached": True}]
    assert hyper("volume", "inspect", "-f", "{{.Mountpoint}}", "db").out == "/volumes/db/disk.img\n"
    result = hyper("volume", "inspect", "nosuch")
    assert (result.status, result.out, "no such volume" in result.err) == (3, "[]\n", True)


def test_volumes_are_removed_each_and_failures_told(daemon, hyper):
    for name in ("a1", "b1"):
        hyper("volume", "create", name)
    daemon.fail_next("RemoveVolume", grpc.StatusCode.FAILED_PRECONDITION, "is in use by container web")
    result = hyper("volume", "rm", "a1", "b1")
    assert (result.status, result.out) == (4, "b1\n")
    assert hyper("volume", "rm", "nosuch").status == 3
    assert hyper("volume", "rm", "-f", "nosuch").status == 0


def test_prune_asks_first(daemon, hyper, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    hyper("volume", "create", "db")
    hyper("volume", "create")
    result = hyper("volume", "prune")
    assert result.status == 1
    assert result.out.startswith(
        "WARNING! This will remove anonymous local volumes not used by at least one container."
    )
    assert not asked(daemon, volume_pb2.PruneVolumesRequest)
    assert hyper("volume", "prune", "-f").out == "f" * 64 + "\nTotal reclaimed space: 1.4MB\n"
    assert hyper("volume", "prune", "-a", "-f", "--filter", "label=x").out.startswith("db\n")
    request = asked(daemon, volume_pb2.PruneVolumesRequest)[-1]
    assert (request.all, request.filters[0].key) == (True, "label")


def test_run_and_rm_pass_on_what_is_said_of_volumes(daemon, hyper):
    result = hyper(
        "create", "-v", "db:/data:ro", "--mount", "type=tmpfs,dst=/t", "--volumes-from", "web:ro",
        "--storage-opt", "size=1g", "alpine",
    )  # fmt: skip
    assert result.status == 0
    [request] = asked(daemon, pb.CreateContainerRequest)
    assert [mount.destination for mount in request.spec.mounts] == ["/data", "/t"]
    assert list(request.spec.volumes_from) == ["web:ro"]
    assert request.spec.writable_size_bytes == 1 << 30
    assert hyper("rm", "-v", result.out.strip()).status == 0
    assert asked(daemon, pb.RemoveContainerRequest)[0].volumes


def test_what_a_container_mounts_is_shown_in_dockers_words(daemon, hyper):
    spec = pb.ContainerSpec(name="web", image="alpine", volumes_from=["db"])
    spec.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="data", destination="/data", readonly=True)
    spec.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="a" * 64, destination="/x", anonymous=True)
    daemon.add_container(spec)
    [document] = json.loads(hyper("inspect", "web").out)
    assert document["Mounts"][0] == {
        "Type": "volume",
        "Name": "data",
        "Source": "",
        "Destination": "/data",
        "Mode": "ro",
        "RW": False,
        "Propagation": "",
        "Driver": "local",
    }
    row = hyper("ps", "-a", "--format", "{{.Mounts}} {{.LocalVolumes}}").out
    assert row == f"data,{'a' * 12} 2\n"
    assert hyper("ps", "-a", "-f", "volume=data").status == 0


def test_df_says_what_may_still_be_written_and_whether_there_is_room(daemon, hyper):
    usage = daemon.usage
    usage.free_bytes = 30 << 30
    usage.volumes.add(name="db", bytes=1 << 30, size_bytes=20 << 30)
    usage.volumes.add(name="far")  # of a server: nothing of it is here
    usage.containers.add(id="1" * 64, writable_bytes=1 << 20, writable_size_bytes=1 << 30)
    usage.containers.add(id="2" * 64)  # never started
    golden("df.txt", hyper("df").out)
    usage.free_bytes = 10 << 30
    assert hyper("df").out.endswith("\n10.74GB free: over-committed by 10.74GB\n")
    assert hyper("df", "--format", "{{.Type}}: {{.Growth}}").out.splitlines() == [
        "Writable disks: 1.073GB",
        "Local Volumes: 20.4GB",
    ]
