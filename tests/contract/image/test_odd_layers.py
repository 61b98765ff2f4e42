# SPDX-License-Identifier: Apache-2.0
"""Layers that no file system can be made of: the entry is named, and what is wrong with it, not an error's number."""

import asyncio
import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperd.errors import InvalidError, TimeoutExpiredError
from hyperd.image.examine import find_fault
from hyperd.model.image import NewImage
from tests import images
from tests.contract.image.test_commit import all_files, pieces
from tests.contract.image.test_layers import convert
from tests.contract.image.test_layers import layers as layers  # noqa: PLC0414 - a fixture
from tests.images import Entry, directory, file, hardlink, symlink, whiteout
from tests.mounts import names_in

FILE = file("f", "x")


def with_pax(name: str, **headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.pax_headers = headers
        tar.addfile(info)
    return buffer.getvalue()


ODD: list[tuple[Any, str]] = [
    ([hardlink("h", "nowhere")], "h: a hard link to nowhere, which does not stand before it"),
    ([hardlink("h", "f"), FILE], "h: a hard link to f, which does not stand before it"),
    ([hardlink("h", "h")], "h: a hard link to h, which does not stand before it"),
    ([directory("d"), hardlink("h", "./d")], "h: a hard link to d, a directory"),
    ([file("d/f"), hardlink("h", "/d")], "h: a hard link to d, a directory"),
    ([FILE, file("f/below")], "f/below: it is below f, which is a file"),
    ([directory("d"), symlink("s", "d"), file("s/x")], "s/x: it is below s, which is a symbolic link"),
    ([FILE, hardlink("h", "f"), file("h/x")], "h/x: it is below h, which is a file"),
    ([directory("d"), Entry("d", type=tarfile.FIFOTYPE), file("d/x")], "d/x: it is below d, which is a named pipe"),
    ([whiteout("w"), file("w/x")], "w/x: it is below w, which is removed by this layer"),
    ([file("n" * 256)], f"{'n' * 200}...: a name of more than 255 bytes"),
    ([FILE, hardlink("h", "n" * 256)], "h: a name of more than 255 bytes"),
    ([file(".")], ".: the root can be nothing but a directory"),
    ([directory("d"), file("d/.wh..")], "d/.wh..: it removes a directory that it stands in"),
    (with_pax("a", mtime="soon"), "a: its extended header says mtime=soon"),
    (with_pax("a", uid="1x"), "a: its extended header says uid=1x"),
    (with_pax("a", **{"SCHILY.xattr.user.x": "v" * 70000}), "a: its extended attributes are more than 4000 bytes"),
]  # fmt: skip


def tar_of(content: Any) -> bytes:
    return content if isinstance(content, bytes) else images.layer_tar(content)


@pytest.mark.parametrize(("content", "fault"), ODD)
async def test_the_entry_and_its_fault_are_told(layers, tmp_path: Path, content: Any, fault: str):
    with pytest.raises(InvalidError, match="an entry of the layer cannot be unpacked") as caught:
        await convert(layers, tmp_path, tar_of(content), compression="gzip")
    assert caught.value.evidence == fault
    assert names_in(layers.root) == []


@pytest.mark.parametrize("packed", [False, True])
async def test_an_import_tells_it_and_reads_no_further(store, packed: bool):
    tar = images.layer_tar(
        [FILE, file("f/below"), *(file(f"more{n}", os.urandom(1 << 20)) for n in range(40))]
    )
    data = gzip.compress(tar, 1) if packed else tar
    with pytest.raises(InvalidError) as caught:
        await store.import_root(pieces(data, 1 << 18), NewImage("root:1"))
    assert caught.value.evidence == "f/below: it is below f, which is a file"
    assert all_files(store) == set()


_PLAIN = st.sampled_from(["a", "b", "a/b", "b/a", "a/b/c", "./a", "/b"])
_NAMES = st.one_of(_PLAIN, st.sampled_from([".wh.a", "a/.wh.b", "a/.wh..wh..opq"]))
_ENTRIES = st.one_of(
    st.builds(file, _NAMES),
    st.builds(directory, _NAMES),
    st.builds(symlink, _NAMES, st.just("b")),
    st.builds(hardlink, _PLAIN, _PLAIN),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ENTRIES, min_size=1, max_size=6))
def test_a_fault_is_found_where_mkfs_finds_one_and_nowhere_else(tmp_path: Path, entries: list[Entry]):
    """But for what was below a directory that went and came again: that is not kept track of."""
    tar = images.layer_tar(entries)
    out = tmp_path / "out"
    out.unlink(missing_ok=True)
    argv = [images.mkfs_erofs(), "--quiet", "--tar=f", "--aufs", "--sort=none", str(out)]
    made = subprocess.run(argv, input=tar, capture_output=True, check=False).returncode == 0
    fault = find_fault(io.BytesIO(tar))
    assert not (made and fault)
    if len({entry.name.replace(".wh.", "").strip("./") for entry in entries}) == len(entries):
        assert made or fault


async def test_an_upload_that_takes_its_time_is_waited_for_and_one_that_drips_is_not(
    store, monkeypatch: pytest.MonkeyPatch
):
    """Packed data is written aside whole before the first of it is a layer's."""
    loop = asyncio.get_running_loop()
    clock, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + passed)

    async def coming(data: bytes, size: int) -> AsyncIterator[bytes]:
        nonlocal passed
        for at in range(0, len(data), size):
            passed += 100.0
            yield data[at : at + size]

    packed = gzip.compress(images.layer_tar([file("f", os.urandom(8 << 20))]))
    image = await store.import_root(coming(packed, 1 << 20), NewImage("root:1"))
    with pytest.raises(TimeoutExpiredError, match="more slowly"):
        await store.import_root(coming(packed, 1000), NewImage("root:2"))
    with pytest.raises(TimeoutExpiredError, match="more slowly"):
        await store.commit(image.image_id, coming(packed, 1000), NewImage())
