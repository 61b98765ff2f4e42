# SPDX-License-Identifier: Apache-2.0
"""`hyper cp`: Docker's rules for what goes where, against a daemon that gives any tar it likes."""

import io
import stat
import subprocess
import tarfile

import pytest

from hyper.v1 import container_pb2 as pb
from hyperctl.errors import CliError
from hyperctl.places import Place, Target, join_link, parse_place, settle
from tests.fakes.daemon_files import folder, special, tar_of

FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777


@pytest.fixture
def web(daemon):
    return daemon.add_container(pb.ContainerSpec(name="web", image="alpine"))


def names(tar):
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", Place("web", "/etc")),
        ("web:", Place("web", "/")),
        ("web:a:b", Place("web", "a:b")),
        ("/a:b", Place("", "/a:b")),
        ("./a:b", Place("", "./a:b")),
        ("../a:b", Place("", "../a:b")),
        ("a", Place("", "a")),
    ],
)
def test_what_is_a_container(text, place):
    assert parse_place(text) == place


DIRECTORY, FILE_THERE, NOTHING = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("source", "is_directory", "target", "there", "expected"),
    [
        ("/d", True, "t", DIRECTORY, ("t", "d")),
        ("/d/.", True, "t", DIRECTORY, ("t", ".")),
        ("/d/", True, "t/", DIRECTORY, ("t", "d")),
        ("/d", True, "t", NOTHING, (".", "t")),
        ("/d", True, "x/t/", NOTHING, ("x", "t")),
        ("/d/.", True, "x/t", NOTHING, ("x", "t")),
        ("/f", False, "t", DIRECTORY, ("t", "f")),
        ("/f", False, "t", FILE_THERE, (".", "t")),
        ("/f", False, "/x/t", NOTHING, ("/x", "t")),
        ("/f", False, "/t", NOTHING, ("/", "t")),
        ("/f", False, ".", DIRECTORY, (".", "f")),
        ("/", True, "t", NOTHING, (".", "t")),
        ("/", True, "t", DIRECTORY, ("t", ".")),
        ("/d", True, "t", FILE_THERE, "a directory onto a file"),
        ("/f", False, "t/", NOTHING, "no such directory"),
        ("/f", False, "t/.", NOTHING, "no such directory"),
    ],
)
def test_where_it_goes(source, is_directory, target, there, expected):
    def settled():
        return settle(source, source_is_directory=is_directory, target=Target(target, *there))

    if isinstance(expected, str):
        with pytest.raises(CliError, match=expected):
            settled()
    else:
        assert settled() == expected


def test_where_a_link_points_to():
    assert join_link("/a/b", "c") == "/a/c"
    assert join_link("/a/b/", "/c") == "/c"


def test_out_of_a_container(daemon, web, hyper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = tar_of(
        folder("nginx"), ("nginx/conf", b"on"), special("nginx/out", tarfile.SYMTYPE, "/etc/shadow")
    )
    daemon.files.add("/etc/nginx", tree)
    result = hyper("cp", "web:/etc/nginx", "new")
    assert (result.status, result.out) == (4, "")
    assert "1 not copied\n  new/out: a link to /etc/shadow" in result.err
    assert "Successfully" not in result.err
    assert (tmp_path / "new/conf").read_bytes() == b"on"
    assert hyper("cp", "-a", "web:/etc/nginx", "all").status == 0
    assert (tmp_path / "all/out").readlink().name == "shadow"
    assert hyper("cp", "-a", "web:/etc/nginx/", "new").status == 0
    assert (tmp_path / "new/nginx/conf").exists()
    assert hyper("cp", "web:etc/nginx/.", "new").status == 3  # as relative as it is, the daemon knows
    assert hyper("cp", "-a", "web:/etc/nginx/.", "new").status == 0
    assert (tmp_path / "new/conf").exists()


def test_a_file_keeps_or_changes_its_name(daemon, web, hyper, tmp_path):
    daemon.files.add("/f", tar_of(("f", b"1")), mode=FILE)
    assert hyper("cp", "web:/f", str(tmp_path)).status == 0
    assert hyper("cp", "web:/f", f"{tmp_path}/g").status == 0
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == b"1"
    result = hyper("cp", "web:/f", f"{tmp_path}/nowhere/")
    assert (result.status, result.err) == (3, f"hyper: {tmp_path}/nowhere/: no such directory\n")
    assert hyper("cp", "web:/f/", str(tmp_path)).err == "hyper: web:/f/: is not a directory\n"
    assert hyper("cp", "web:/none", str(tmp_path)).status == 3
    assert hyper("cp", "none:/f", str(tmp_path)).status == 3


def test_a_target_that_is_a_link_is_followed(daemon, web, hyper, tmp_path):
    daemon.files.add("/f", tar_of(("f", b"1")), mode=FILE)
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    assert hyper("cp", "web:/f", f"{tmp_path}/link").status == 0
    assert ((tmp_path / "real").read_bytes(), (tmp_path / "link").is_symlink()) == (b"1", True)


def test_a_target_that_cannot_be_looked_at_is_said_in_a_line(daemon, web, hyper, tmp_path):
    daemon.files.add("/f", tar_of(("f", b"1")), mode=FILE)
    long = tmp_path / ("a" * 300)
    result = hyper("cp", "web:/f", str(long))
    assert (result.status, result.err) == (2, f"hyper: {long}: cannot be looked at: File name too long\n")


def test_a_daemon_that_lies_writes_nothing_elsewhere(daemon, web, hyper, tmp_path):
    target = tmp_path / "in"
    target.mkdir()
    daemon.files.add("/d", tar_of(folder("d"), ("../out", b"x")))
    result = hyper("cp", "web:/d", str(target))
    assert (result.status, "not a tar that can be trusted" in result.err) == (1, True)
    assert not (tmp_path / "out").exists()
    daemon.files.add("/f", tar_of(("f", b"x" * 10_000))[:5000], mode=FILE)
    assert hyper("cp", "web:/f", str(target)).status == 1
    assert not (target / "f").exists()


def test_a_tar_to_standard_output(daemon, web, spawn):
    tar = tar_of(("f", b"x" * 3_000_000))
    daemon.files.add("/f", tar, mode=FILE)
    child = spawn("cp", "web:/f", "-", stdout=subprocess.PIPE)
    assert child.stdout.read() == tar
    assert child.wait(60) == 0


def test_into_a_container(daemon, web, hyper, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/f").write_text("x")
    daemon.files.add("/srv")
    daemon.files.add("/file", mode=FILE)
    daemon.files.add("/link", mode=LINK, link="srv")
    daemon.files.paths[b"/srv"].mode = stat.S_IFDIR | 0o755
    wanted = [
        (f"{tmp_path}/src", "/srv", b"/srv", ["src", "src/f"]),
        (f"{tmp_path}/src/.", "/srv", b"/srv", [".", "./f"]),
        (f"{tmp_path}/src", "/new", b"/", ["new", "new/f"]),
        (f"{tmp_path}/src/f", "/srv/", b"/srv", ["f"]),
        (f"{tmp_path}/src/f", "/file", b"/", ["file"]),
        (f"{tmp_path}/src/f", "/link", b"/srv", ["f"]),
    ]
    for source, target, directory, members in wanted:
        assert hyper("cp", source, f"web:{target}").status == 0, (source, target)
        options, data = daemon.files.written[-1]
        assert (options.path, names(data)) == (directory, members)
        assert (options.keep_owner, options.no_overwrite_dir_non_dir) == (False, True)
    assert hyper("cp", "-a", f"{tmp_path}/src", "web:/srv").status == 0
    assert daemon.files.written[-1][0].keep_owner
    for source, target, status in (
        (f"{tmp_path}/src", "/file", 4),
        (f"{tmp_path}/src/f", "/none/", 3),
        (f"{tmp_path}/none", "/srv", 3),
        (f"{tmp_path}/src/f/", "/srv", 4),
    ):
        assert hyper("cp", source, f"web:{target}").status == status, (source, target)
    result = hyper("cp", f"{tmp_path}/src/f", "nosuch:/none/")
    assert (result.status, result.err) == (3, "hyper: nosuch: no such container\n")
    assert len(daemon.files.written) == len(wanted) + 1


def test_a_link_is_copied_as_one_unless_followed(daemon, web, hyper, tmp_path):
    daemon.files.add("/srv")
    (tmp_path / "f").write_text("content")
    (tmp_path / "l").symlink_to("f")
    for flags, kind in (((), tarfile.SYMTYPE), (("-L",), tarfile.REGTYPE)):
        assert hyper("cp", *flags, f"{tmp_path}/l", "web:/srv").status == 0
        with tarfile.open(fileobj=io.BytesIO(daemon.files.written[-1][1])) as archive:
            assert [(member.name, member.type) for member in archive] == [("l", kind)]


def test_a_tar_from_standard_input(daemon, web, spawn):
    daemon.files.add("/srv")
    daemon.files.add("/file", mode=FILE)
    tar = tar_of(("f", b"x" * 3_000_000))
    child = spawn("cp", "-", "web:/srv", stdin=subprocess.PIPE)
    child.communicate(tar, 60)
    assert child.returncode == 0
    assert daemon.files.written[0][1] == tar
    child = spawn("cp", "-", "web:/file", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.communicate(timeout=60)[1] == b"hyper: web:/file: must be a directory\n"


def test_what_cannot_be_read_is_said_and_not_the_daemons_view(daemon, web, hyper, tmp_path, monkeypatch):
    daemon.files.add("/srv")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x" * 100)

    def shrunk(file):
        about = original(file)
        return type("Longer", (), {"st_size": about.st_size + 1})

    original = __import__("os").fstat
    monkeypatch.setattr("hyperctl.pack.os.fstat", shrunk)
    result = hyper("cp", f"{tmp_path}/d", "web:/srv")
    assert (result.status, "became shorter" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("web:/a", "web:/b"), "copying between containers is not supported"),
        (("a", "b"), "must specify at least one container source"),
        (("-", "-"), "must specify at least one container source"),
        (("", "web:/a"), "source can not be empty"),
        (("a", ""), "destination can not be empty"),
    ],
)
def test_what_cannot_be_copied(hyper, args, message):
    result = hyper("cp", *args)
    assert (result.status, message in result.err) == (2, True)
