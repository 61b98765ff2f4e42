# SPDX-License-Identifier: Apache-2.0
"""A guest's tar is hostile: whatever it says, nothing is written but below the directory it may write to."""

import io
import os
import stat
import struct
import tarfile

import pytest

from hyperctl.errors import CliError
from hyperctl.pack import pack
from hyperctl.tar_reader import BrokenTarError, _records
from hyperctl.unpack import Unpacker, require_written, tell_left
from tests.fakes.daemon_files import folder, special, tar_of


def chunks(tar, size=1000):
    return iter([tar[at : at + size] for at in range(0, len(tar), size)])


@pytest.fixture
def home(tmp_path):
    """The directory to write to, in one with things that must not change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    target = tmp_path / "home/target"
    target.mkdir(parents=True)
    return target


def state_outside(home):
    secret = home.parents[1] / "outside/secret"
    names = sorted(str(path) for path in home.parents[1].rglob("*") if home not in path.parents)
    return names, secret.read_text(), secret.stat().st_mode, secret.stat().st_nlink


def unpack(home, tar, name="top", **options):
    unpacker = Unpacker(home, name, **options)
    unpacker.unpack(chunks(tar))
    return unpacker


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tree_comes_as_it_is(home, form):
    tar = tar_of(
        folder("d", 0o700), ("d/f", b"content" * 1000), special("d/l", tarfile.SYMTYPE, "f"), form=form
    )
    unpack(home, tar, "new")
    assert (home / "new/f").read_bytes() == b"content" * 1000
    assert (home / "new/l").readlink().name == "f"
    assert stat.S_IMODE((home / "new").stat().st_mode) == 0o700


def test_names_of_any_length_and_any_bytes(home):
    odd = os.fsdecode(b"\xff\xfe" + b"n" * 150)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        unpack(home, tar_of(folder("d"), (f"d/{odd}", form.to_bytes(1, "big")), form=form), "new")
        assert (home / "new" / odd).read_bytes() == form.to_bytes(1, "big")


def test_content_goes_in_without_touching_the_directory_itself(home):
    home.chmod(0o750)
    unpack(home, tar_of(folder("d", 0o777), ("d/f", b"x")), ".")
    assert (home / "f").read_bytes() == b"x"
    assert stat.S_IMODE(home.stat().st_mode) == 0o750


@pytest.mark.parametrize("options", [{}, {"archive": True}])
@pytest.mark.parametrize("mode", [0o777, 0o6777, 0])
def test_what_a_guest_says_of_a_directory_that_is_there_is_not_heard(home, mode, options):
    """Its user's keys may be in it."""
    ours = home / "top/.ssh"
    ours.mkdir(parents=True, mode=0o700)
    ours.chmod(0o700)
    before = (home / "top").stat(), ours.stat()
    told = [folder(name, mode) for name in ("top", "top/.ssh", "top/.ssh/new")]
    for info in told:
        info.uid = info.gid = 1234
    unpack(home, tar_of(*told, ("top/.ssh/f", b"x")), **options)
    for was, now in zip(before, ((home / "top").stat(), ours.stat()), strict=True):
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    assert (ours / "f").read_bytes() == b"x"
    assert stat.S_IMODE((ours / "new").stat().st_mode) == mode & (
        0o7777 if options and os.geteuid() == 0 else 0o777
    )


@pytest.mark.parametrize(
    "members",
    [
        [("../outside/secret", b"x")],
        [folder("d"), ("d/../../outside/secret", b"x")],
        [folder("d"), ("/etc/passwd", b"x")],
        [folder("d"), ("other/f", b"x")],
        [("d/f", b"x")],
        [folder("d"), special("d/h", tarfile.LNKTYPE, "../outside/secret")],
        [folder("d"), special("d/h", tarfile.LNKTYPE, "d/../../outside/secret")],
        [folder("d"), special("d/h", tarfile.LNKTYPE, "d")],
        [folder("d"), special("d/h", tarfile.LNKTYPE, "d/nothing")],
        [folder("d"), special("d/l", tarfile.SYMTYPE, "x"), ("d/l/f", b"x")],
        [folder("d"), folder("d/s"), ("d/s", b"x")],
        [folder("d"), ("d/f", b"x"), folder("d/f")],
    ],
)
def test_what_lies_is_refused_and_nothing_outside_changes(home, members):
    before = state_outside(home)
    with pytest.raises(CliError):
        unpack(home, tar_of(*members))
    assert state_outside(home) == before
    assert not [path for path in home.rglob("*") if path.name.startswith(".hyper-cp")]


@pytest.mark.parametrize(
    ("target", "stays"),
    [
        ("f", True),
        ("../d/f", True),
        ("../../d/f", False),
        ("/etc/passwd", False),
        ("../../../outside/secret", False),
        ("s/../../..", False),
        ("s/../f", False),
        ("..", True),
        ("../..", False),
        ("", False),
    ],
)
def test_links_lead_nowhere_but_into_the_copy(home, target, stays):
    link = special("top/d/l", tarfile.SYMTYPE, target or "x")
    link.linkname = target
    tar = tar_of(folder("top"), folder("top/d"), link, ("top/after", b"x"))
    unpacker = unpack(home, tar)
    assert (home / "top/d/l").is_symlink() == stays
    assert (home / "top/after").exists()
    assert bool(tell_left(unpacker.left)) != stays


def test_a_link_that_is_there_is_replaced_and_not_followed(home):
    outside = home.parents[1] / "outside"
    (home / "top").mkdir()
    (home / "top/f").symlink_to(outside / "secret")
    (home / "top/s").symlink_to(outside)
    unpack(home, tar_of(folder("top"), ("top/f", b"mine")))
    assert (home / "top/f").read_bytes() == b"mine"
    with pytest.raises(CliError):
        unpack(home, tar_of(folder("top"), ("top/s/secret", b"mine")))
    assert (outside / "secret").read_text() == "secret"


def test_no_devices_no_fifos(home):
    tar = tar_of(
        folder("top"),
        special("top/null", tarfile.CHRTYPE),
        special("top/sda", tarfile.BLKTYPE),
        special("top/pipe", tarfile.FIFOTYPE),
    )
    unpacker = unpack(home, tar, archive=True)
    assert list((home / "top").iterdir()) == []
    assert unpacker.left.count == 3


def test_one_path_that_is_a_link_out_is_an_error(home):
    unpacker = unpack(home, tar_of(special("l", tarfile.SYMTYPE, "/etc/shadow")))
    with pytest.raises(CliError, match="not copied: it is a link to /etc/shadow"):
        require_written(unpacker, "web:/l")


def test_an_archive_has_its_links_as_they_are_and_no_later_one_is_led_out_by_them(home):
    outside = home.parents[1] / "outside"
    links = [
        special("top/abs", tarfile.SYMTYPE, "/etc/passwd"),
        special("top/s", tarfile.SYMTYPE, "../../../outside"),
        special("top/f", tarfile.SYMTYPE, "../../../outside/secret"),
    ]
    for info in links:
        info.mtime, info.uid, info.gid = 1_000_000_000, 1234, 1234
    unpacker = unpack(home, tar_of(folder("top"), *links), archive=True)
    assert not unpacker.left.count
    assert os.readlink(home / "top/abs") == "/etc/passwd"  # noqa: PTH115 - as it is
    about = (home / "top/s").lstat()
    assert about.st_mtime == 1_000_000_000
    assert (about.st_uid, about.st_gid) == (
        (1234, 1234) if os.geteuid() == 0 else (os.geteuid(), about.st_gid)
    )
    with pytest.raises(CliError):
        unpack(home, tar_of(folder("top"), ("top/s/secret", b"mine")), archive=True)
    unpack(home, tar_of(folder("top"), ("top/f", b"mine")), archive=True)
    assert (home / "top/f").read_bytes() == b"mine"
    assert ((outside / "secret").read_text(), outside.stat().st_uid) == ("secret", os.geteuid())


def test_links_within_the_copy_have_their_time(home):
    info = special("top/l", tarfile.SYMTYPE, "f")
    info.mtime = 1_000_000_000
    unpack(home, tar_of(folder("top"), info))
    assert (home / "top/l").lstat().st_mtime == 1_000_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to give")
def test_owners_and_set_id_bits_only_when_they_are_asked_for(home):
    info = special("f", tarfile.REGTYPE, mode=0o6755)
    info.uid = info.gid = 1234
    unpack(home, tar_of(info), "plain")
    unpack(home, tar_of(info), "kept", archive=True)
    plain, kept = (home / "plain").stat(), (home / "kept").stat()
    assert (stat.S_IMODE(plain.st_mode), plain.st_uid) == (0o755, os.getuid())
    assert (stat.S_IMODE(kept.st_mode), kept.st_uid, kept.st_gid) == (0o6755, 1234, 1234)


def test_a_hard_link_is_one_within_the_copy(home):
    unpack(home, tar_of(folder("d"), ("d/a", b"x"), special("d/b", tarfile.LNKTYPE, "d/a")), "new")
    assert (home / "new/a").samefile(home / "new/b")


def test_a_stream_that_ends_early_leaves_no_half_file(home):
    tar = tar_of(folder("top"), ("top/f", b"x" * 10_000))
    for length in (0, 100, 1000, 2000, 11_000):
        with pytest.raises(BrokenTarError):
            unpack(home, tar[:length])
    assert not (home / "top/f").exists()
    assert [path.name for path in home.rglob("*")] in ([], ["top"])


def test_an_extended_header_is_read_within_bounds(home):
    """`tarfile` would read it into memory, however large it says it is."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(BrokenTarError, match="extended header"):
        unpack(home, header.tobuf(tarfile.GNU_FORMAT) + b"x" * 100_000)


@pytest.mark.parametrize(
    "record", [b"x", b"99 path=a\n", b"9 path", b"-5 a=b\n", b"12 size=-1\n\0\0\0", b"11 uid=abc\n"]
)
def test_broken_pax_records_are_refused(home, record):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    padded = record.ljust(512, b"\0")
    with pytest.raises(BrokenTarError):
        unpack(home, header.tobuf(tarfile.USTAR_FORMAT) + padded + tar_of(("f", b"x")))


def pax(records: bytes) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    return header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def test_the_extended_headers_of_one_entry_are_bounded_together(home):
    value = b"300011 " + b"k=" + b"v" * 300_001 + b"\n"
    assert len(value) == 300_011
    three = pax(value) * 3
    unpack(home, three + tar_of(("f", b"x")), "f")
    assert (home / "f").read_bytes() == b"x"
    with pytest.raises(BrokenTarError, match="extended header"):
        unpack(home, three + pax(value) + tar_of(("f", b"x")), "f")


def test_extended_headers_without_anything_in_them_come_to_an_end(home):
    with pytest.raises(BrokenTarError, match="extended header"):
        unpack(home, pax(b"") * 3000 + tar_of(("f", b"x")), "f")


def test_of_extended_headers_only_what_is_used_is_kept():
    """Of any number of entries: one of 1 MiB of little records would be some 16 MiB of strings."""
    little = b"".join(b"12 k%05d=v\n" % number for number in range(50_000))
    assert _records(little + b"10 path=a\n" + b"8 uid=7\n" + bytes(7)) == {
        "path": "a",
        "uid": "7",
    }
    assert _records(b"") == _records(bytes(512)) == {}
    assert "GNU.sparse." in _records(b"22 GNU.sparse.major=1\n")


@pytest.mark.parametrize("form", [b"22 GNU.sparse.major=1\n", b"25 GNU.sparse.realsize=9\n"])
def test_sparse_files_are_refused(home, form):
    with pytest.raises(BrokenTarError, match="sparse"):
        unpack(home, pax(form) + tar_of(("f", b"x")), "f")


def test_noise_is_no_tar(home):
    for noise in (b"\1" * 5000, struct.pack("<512I", *range(512)), os.urandom(4096)):
        with pytest.raises(BrokenTarError):
            unpack(home, noise)


def test_what_comes_after_the_end_is_ignored(home):
    unpack(home, tar_of(("f", b"x")) + b"garbage" * 1000, "f")
    assert (home / "f").read_bytes() == b"x"


def test_an_unwritable_file_system_is_said_with_the_place(home):
    (home / "top").mkdir()
    (home / "top/f").mkdir()
    with pytest.raises(CliError) as caught:
        unpack(home, tar_of(folder("top"), ("top/f", b"x")))
    assert str(home / "top/f") in str(caught.value)


def test_what_is_packed_comes_out_the_same(home, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/big").write_bytes(os.urandom(3_000_001))
    (source / os.fsdecode(b"\xfe")).write_bytes(b"")
    os.link(source / "sub/big", source / "sub/same")
    (source / "link").symlink_to("sub//big")
    tar = b"".join(pack(str(source), "s"))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames()[0] == "s"
    unpack(home, tar, "copy")
    copy = home / "copy"
    assert (copy / "sub/big").read_bytes() == (source / "sub/big").read_bytes()
    assert (copy / "sub/same").samefile(copy / "sub/big")
    assert os.readlink(copy / "link") == "sub//big"  # noqa: PTH115 - Path would tidy it up
    assert (copy / os.fsdecode(b"\xfe")).read_bytes() == b""
