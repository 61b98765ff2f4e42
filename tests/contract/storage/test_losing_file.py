# SPDX-License-Identifier: Apache-2.0
"""The file system that the power cuts of other tests believe in: what was synced is there, and nothing else."""

import errno
import os

import pytest

from tests.losing import PAGE
from tests.losing_file import losing_file

SIZE = 64 * PAGE


def test_what_was_synced_is_there_and_nothing_else(tmp_path):
    (tmp_path / "dir").mkdir()
    path = tmp_path / "dir/disk.img"
    path.write_bytes(b"0" * SIZE)
    path.chmod(0o600)
    with losing_file(path) as file:
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.pwrite(descriptor, b"1" * 3 * PAGE, PAGE + 7)
            os.fdatasync(descriptor)
            os.pwrite(descriptor, b"2" * PAGE, 20 * PAGE)
            assert os.pread(descriptor, PAGE, 20 * PAGE) == b"2" * PAGE, "whoever reads it sees it"
            path.chmod(0o640)
            os.chown(path, 70001, 70000)
            found = path.stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777, found.st_size) == (
                70001,
                70000,
                0o640,
                SIZE,
            )
            with pytest.raises(FileNotFoundError):
                (tmp_path / "dir/other").read_bytes()
            file.lose_power()
            for call in (lambda: os.fdatasync(descriptor), lambda: os.pread(descriptor, 1, 0)):
                with pytest.raises(OSError, match="Input/output error") as raised:
                    call()
                assert raised.value.errno == errno.EIO
        finally:
            os.close(descriptor)
    assert (file.syncs, file.lost_pages) == (1, 1)
    expected = bytearray(b"0" * SIZE)
    expected[PAGE + 7 : 4 * PAGE + 7] = b"1" * 3 * PAGE
    assert path.read_bytes() == bytes(expected)
    assert path.stat().st_mode & 0o777 == 0o600
