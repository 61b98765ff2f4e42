# SPDX-License-Identifier: Apache-2.0
"""`-v`, `--mount` and `--storage-opt` as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.v1 import container_pb2 as pb
from hyperctl.errors import InvalidError
from hyperctl.mounts import parse_mount, parse_storage_options, parse_volume

VOLUME, BIND, TMPFS = pb.MOUNT_TYPE_VOLUME, pb.MOUNT_TYPE_BIND, pb.MOUNT_TYPE_TMPFS


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/data", pb.Mount(type=VOLUME, destination="/data")),
        ("db:/data", pb.Mount(type=VOLUME, source="db", destination="/data")),
        ("db:/data:ro", pb.Mount(type=VOLUME, source="db", destination="/data", readonly=True)),
        ("db:/data:rw,nocopy,z", pb.Mount(type=VOLUME, source="db", destination="/data", no_copy=True)),
        ("/src:/data", pb.Mount(type=BIND, source="/src", destination="/data", create_source=True)),
    ],
)
def test_a_volume(text, mount):
    assert parse_volume(text) == mount


def test_a_relative_directory_is_one_of_ours(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_volume("./src:/data").source == str(tmp_path / "src")
    assert parse_mount("type=bind,src=../x,dst=/data").source == str(tmp_path.parent / "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:",
        ":/a",
        "data",
        "db:data",
        "a:/a:/b:ro",
        "db:/data:wrong",
        "db:/data:shared",
        "a/b:/c",
        "x:/c",
    ],
)
def test_what_is_no_volume_is_refused(text):
    with pytest.raises(InvalidError):
        parse_volume(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("src=db,dst=/d", pb.Mount(type=VOLUME, source="db", destination="/d")),
        (
            "type=volume,source=db,target=/d,readonly,volume-nocopy=true,volume-label=a=b,volume-opt=size=1g",
            pb.Mount(
                type=VOLUME,
                source="db",
                destination="/d",
                readonly=True,
                no_copy=True,
                labels={"a": "b"},
                size_bytes=1 << 30,
            ),
        ),
        (
            "type=bind,src=/s,dst=/d,bind-create-src,idmap=uids=0-1000-1#5-0-2;gids=7-8-9,bind-recursive=enabled",
            pb.Mount(
                type=BIND,
                source="/s",
                destination="/d",
                create_source=True,
                uid_map=[
                    pb.IdRange(host=0, guest=1000, count=1),
                    pb.IdRange(host=5, guest=0, count=2),
                ],
                gid_map=[pb.IdRange(host=7, guest=8, count=9)],
            ),
        ),
        ("type=bind,src=/s,dst=/d,ro", pb.Mount(type=BIND, source="/s", destination="/d", readonly=True)),
        (
            "type=tmpfs,destination=/d,tmpfs-size=1m,tmpfs-mode=0700",
            pb.Mount(type=TMPFS, destination="/d", size_bytes=1 << 20, mode=0o700),
        ),
        (
            "src=db,dst=/d,volume-opt=server=10.0.0.1,volume-opt=export=x,volume-driver=nbd",
            pb.Mount(
                type=VOLUME,
                source="db",
                destination="/d",
                driver="nbd",
                options={"server": "10.0.0.1", "export": "x"},
            ),
        ),
        ('"src=db","dst=/a,b"', pb.Mount(type=VOLUME, source="db", destination="/a,b")),
        ("src=db,dst=/d,readonly=false", pb.Mount(type=VOLUME, source="db", destination="/d")),
    ],
)
def test_a_mount(text, mount):
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "src=db",
        "type=nfs,dst=/d",
        "src=db,dst=/d,volume-opt=server=host",
        "type=tmpfs,dst=/d,volume-opt=server=host",
        "src=db,dst=d",
        "dst=/d,colour=red",
        "type=bind,dst=/d",
        "type=bind,src=s,dst=/d",
        "type=tmpfs,src=x,dst=/d",
        "type=bind,src=/s,dst=/d,idmap",
        "type=bind,src=/s,dst=/d,idmap=uids=1-2",
        "type=bind,src=/s,dst=/d,idmap=uids=1-2-9999999999",
        "type=bind,src=/s,dst=/d,idmap=pids=1-2-3",
        "src=db,dst=/d,idmap=uids=1-2-3",
        "src=db,dst=/d,bind-create-src",
        "type=tmpfs,dst=/d,tmpfs-mode=999",
        "type=bind,src=/s,dst=/d,volume-nocopy",
        "src=db,dst=/d,tmpfs-mode=700",
        "src=db,dst=/d,volume-opt=type=nfs",
        "src=db,dst=/d,readonly=maybe",
        'src="db,dst=/d',
    ],
)
def test_what_is_no_mount_is_refused(text):
    with pytest.raises(InvalidError):
        parse_mount(text)


def test_the_size_of_the_disk():
    assert parse_storage_options(["size=20g"]) == 20 << 30
    assert parse_storage_options([]) == 0
    for text in ("size=0", "size=", "colour=red", "20g"):
        with pytest.raises(InvalidError):
            parse_storage_options([text])


@given(st.text())
def test_no_text_is_a_bug(text):
    for parse in (parse_volume, parse_mount):
        try:
            parse(text)
        except InvalidError:
            continue
