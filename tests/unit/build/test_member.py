# SPDX-License-Identifier: Apache-2.0
"""One file out of a guest's tar."""

import io
import tarfile
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.build.member import content_of
from hyperd.errors import InvalidError

LIMIT = 1 << 20


def tar(content: bytes, name: str = "file", form: int = tarfile.PAX_FORMAT, **about: object) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in about.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(data: bytes, size: int = 512, limit: int = LIMIT) -> bytes:
    return b"".join([piece async for piece in content_of(pieces(data, size), limit)])


@given(st.binary(max_size=3000), st.integers(1, 2000), st.sampled_from(["f", "x" * 300]))
async def test_the_content_comes_however_it_is_cut(content: bytes, size: int, name: str):
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert await read(tar(content, name, form), size) == content


async def test_a_size_in_an_extended_header_counts():
    headers = {"size": "5", "SCHILY.xattr.user.x": "y\nz=1"}
    assert await read(tar(b"hello", pax_headers=headers)) == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        tar(b"hello")[:512],
        tar(b"x" * 1000)[:1100],
        b"no tar" * 200,
        tar(b"", type=tarfile.DIRTYPE),
        tar(b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar(b"hello", pax_headers={"size": "minus"}),
        bytes(10240),
    ],
)
async def test_what_is_no_whole_file_is_refused(data: bytes):
    with pytest.raises(InvalidError):
        await read(data)


async def test_a_file_that_is_too_large_is_refused_before_its_content():
    with pytest.raises(InvalidError, match="5 bytes"):
        await read(tar(b"hello"), limit=4)


async def test_headers_without_an_end_are_refused():
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 0
    with pytest.raises(InvalidError, match="file that it was asked for"):
        await read(header.tobuf(tarfile.GNU_FORMAT) * 300)
