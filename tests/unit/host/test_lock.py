# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from hyperd.errors import WrongStateError
from hyperd.host.lock import FileLock


def test_a_second_holder_is_told_the_first_ones_pid_and_what_it_needs(tmp_path: Path):
    first, second = (
        FileLock(tmp_path / "lock", subject="bridge b0", remedy="a bridge of its own") for _ in range(2)
    )
    first.acquire()
    first.acquire()
    with pytest.raises(
        WrongStateError, match=f"bridge b0: in use by another process, pid {os.getpid()}"
    ) as caught:
        second.acquire()
    assert caught.value.hint.endswith("or give this one a bridge of its own")
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_without_words_it_speaks_of_the_directory(tmp_path: Path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(WrongStateError) as caught:
        second.acquire()
    assert caught.value.subject == str(tmp_path)
    assert "a state directory of its own" in caught.value.hint
    first.release()
