# SPDX-License-Identifier: Apache-2.0
"""What a detached child says: so much is kept, and no more."""

import contextlib
import os

import pytest

from hyperd.host import process
from hyperd.host.complaints import KEPT_BYTES, TAIL_BYTES, Complaints
from hyperd.host.held import HeldProcess


@pytest.fixture
def said():
    made = Complaints.new("test")
    with contextlib.closing(made):
        yield made


def test_its_end_is_told_and_it_takes_no_more_than_it_has_room_for(said):
    assert said.tail() == ""
    os.write(said.fd, b"first\n")
    assert said.tail() == "first"
    os.write(said.fd, bytes(KEPT_BYTES))  # what there is room for
    with pytest.raises(PermissionError):
        os.write(said.fd, b"x")
    assert os.fstat(said.fd).st_size == KEPT_BYTES
    os.lseek(said.fd, 0, os.SEEK_SET)
    os.write(said.fd, b"x" * KEPT_BYTES)
    assert len(said.tail()) == TAIL_BYTES


def test_there_is_room_again_for_the_last_words_and_the_end_is_kept(said):
    os.write(said.fd, b"x" * (KEPT_BYTES // 2))
    said.renew()
    assert said.tail() == "x" * TAIL_BYTES, "so far nothing is forgotten"
    os.write(said.fd, b"the end of this\n")
    said.renew()
    os.write(said.fd, b"last words\n")
    assert said.tail().endswith("the end of this\nlast words")
    for _ in range(100):  # far more than there is room for
        os.write(said.fd, b"y" * (KEPT_BYTES // 4))
        said.renew()
    assert said.tail() == "y" * TAIL_BYTES


async def test_what_a_child_said_is_borrowed_from_it_position_and_all(said):
    ends = os.pipe()
    script = ["sh", "-c", "echo here; read end <&3"]
    pid = process.start_detached(script, output=said.fd, pass_fds=ends[:1])
    held = HeldProcess.of(pid)
    assert held is not None
    borrowed = Complaints(held.borrow(2))
    os.write(ends[1], b"go on\n")
    await held.wait_gone()
    assert borrowed.tail() == "here"
    with pytest.raises(ProcessLookupError):
        held.borrow(2)
    held.close()
    await held.wait_gone()  # of what is nobody's any more there is no end to wait for
    borrowed.close()
    borrowed.close()
    assert borrowed.tail() == ""
    for end in ends:
        os.close(end)
