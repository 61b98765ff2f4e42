# SPDX-License-Identifier: Apache-2.0
import os
import socket
from pathlib import Path

import pytest

from hyperd.host import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_is_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool):
    name = f"hyper-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")
