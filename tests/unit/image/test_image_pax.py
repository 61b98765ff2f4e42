# SPDX-License-Identifier: Apache-2.0
"""Extended headers of tars."""

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from hyperd.image.framing import Framing
from hyperd.image.pax import read_records


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


KEYS = st.binary(min_size=1, max_size=20).filter(lambda key: b"=" not in key)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=200)), max_size=5), st.binary(max_size=20))
def test_what_was_written_is_read_whatever_the_values_hold(pairs, rest):
    whole = b"".join(record(*pair) for pair in pairs)
    assert read_records(whole) == (pairs, True)
    assert read_records(whole + rest).pairs[: len(pairs)] == pairs


@given(st.binary(max_size=300))
def test_rubbish_has_an_end(data):
    read_records(data)


def test_a_size_within_a_value_is_none():
    """As an extended attribute of a guest may have it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("f")
        info.size, info.pax_headers = 3, {"SCHILY.xattr.user.x": "a\n14 size=99999\nb"}
        tar.addfile(info, io.BytesIO(b"abc"))
    framing = Framing()
    framing.feed(memoryview(target.getvalue()))
    assert framing.finish() == ""
