# SPDX-License-Identifier: Apache-2.0
"""Tars of all kinds pass, whatever the chunks; anything else is told."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.image.framing import BLOCK, Framing


def complaint_of(data: bytes, chunk_bytes: int = 1 << 20) -> str:
    framing = Framing()
    for start in range(0, len(data), chunk_bytes):
        framing.feed(memoryview(data)[start : start + chunk_bytes])
    return framing.finish()


def tar_of(form: int, members: list[tuple[str, bytes]], pax: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=pax) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a" * 150
        tar.addfile(link)
    return buffer.getvalue()


FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@settings(deadline=None)
@given(
    st.sampled_from(FORMS[1:]),
    st.lists(st.tuples(st.text("aä/", min_size=1, max_size=300), st.binary(max_size=1500)), max_size=4),
    st.integers(1, 3000),
)
def test_every_tar_passes_in_every_cut(form, members, chunk_bytes):
    data = tar_of(form, members, {"comment": "global"} if form == tarfile.PAX_FORMAT else None)
    assert complaint_of(data, chunk_bytes) == ""
    assert complaint_of(data + b"rubbish after the end", chunk_bytes) == ""


@pytest.mark.parametrize("end", [0, 1, 2])
def test_the_end_may_be_left_away(end):
    header = tarfile.TarInfo("a").tobuf()
    assert complaint_of(header + bytes(BLOCK) * end) == ""


def test_padding_at_the_very_end_may_lack_but_data_may_not():
    info = tarfile.TarInfo("a")
    info.size = 600
    header = info.tobuf()
    assert complaint_of(header + b"x" * 600) == ""
    assert complaint_of(header + b"x" * 599) == "unexpected end of the archive at byte 1111"


def test_sizes_in_base_256_and_in_pax_records_count():
    info = tarfile.TarInfo("a")
    info.size = 513
    large = bytearray(info.tobuf())
    large[124:136] = b"\x80" + (513).to_bytes(11, "big")
    assert complaint_of(resummed(large) + b"x" * 1024 + info.tobuf() + b"x" * 513) == ""
    record = b"12 size=700\n"
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, len(record)
    small = tarfile.TarInfo("a").tobuf()
    data = pax.tobuf() + record.ljust(BLOCK, b"\0") + small + b"x" * 1024 + small
    assert complaint_of(data) == ""
    assert complaint_of(data, 100) == ""
    assert complaint_of(pax.tobuf()) == "unexpected end of the archive at byte 512"


def test_a_sparse_files_map_goes_before_its_data():
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 100
    header = bytearray(info.tobuf())
    header[482] = 1
    more, last = bytearray(BLOCK), bytes(BLOCK)
    more[504] = 1
    assert complaint_of(resummed(header) + more + last + b"x" * 512 + tarfile.TarInfo("b").tobuf()) == ""


def test_signed_sums_of_old_tars_pass():
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[0:2] = b"\xe4\xe4"
    header[148:156] = b" " * 8
    total = sum(byte - 256 * (byte > 127) for byte in header)
    header[148:156] = b"%06o\0 " % total
    assert complaint_of(bytes(header)) == ""


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\x00garbage" * 1000, 0),
        (tarfile.TarInfo("a").tobuf() + b"\x00garbage" * 1000, 512),
        (tarfile.TarInfo("a").tobuf() + bytes(BLOCK) + b"x" * BLOCK, 1024),
        (b"x" * BLOCK, 0),
    ],
)
def test_what_is_no_header_is_told_with_its_place(data, offset):
    for chunk_bytes in (1, 511, 1 << 20):
        assert complaint_of(data, chunk_bytes) == f"invalid tar header at byte {offset}"


@settings(deadline=None)
@given(st.binary(max_size=4096), st.integers(1, 4096))
def test_no_rubbish_breaks_it(data, chunk_bytes):
    assert complaint_of(data, chunk_bytes) == complaint_of(data)


def resummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
