# SPDX-License-Identifier: Apache-2.0
"""An iSCSI server of our own, on loopback: tgt's, which serves a file from user space."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import wait_until

TARGET = "iqn.2026-01.local.test:disk"
LUN = 1  # 0 is tgt's own


@dataclass(frozen=True)
class IscsiServer:
    port: int
    control: str  # names its control socket: a short
    process: "subprocess.Popen[bytes]"

    def connections(self) -> int:
        return self._admin("--mode", "conn", "--op", "show", "--tid", "1").count("Connection:")

    def _admin(self, *words: str) -> str:
        argv = ["tgtadm", "-C", self.control, "--lld", "iscsi", *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def serve(self, path: Path, user: str, password: str) -> None:
        self._admin("--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET)
        self._admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", str(LUN), "-b", str(path))
        self._admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        if user:
            self._admin("--mode", "account", "--op", "new", "--user", user, "--password", password)
            self._admin("--mode", "account", "--op", "bind", "--tid", "1", "--user", user)


@contextlib.contextmanager
def iscsi_server(path: Path, user: str = "", password: str = "") -> Iterator[IscsiServer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    control = str(port % 32000)
    argv = ["tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            asked = ["tgtadm", "-C", control, "--lld", "iscsi", "--mode", "target", "--op", "show"]
            wait_until(
                lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0,
                "tgtd answers",
            )
            server = IscsiServer(port, control, process)
            server.serve(path, user, password)
            yield server
        finally:
            process.kill()
            for left in Path("/var/run/tgtd").glob(f"socket.{control}*"):
                left.unlink()


def options_of(server: IscsiServer) -> dict[str, str]:
    return {"server": f"127.0.0.1:{server.port}", "target": TARGET, "lun": str(LUN)}


def own_processes(root: Path) -> list[int]:
    """Whoever serves at a socket below it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and any(str(fd.readlink()).startswith(str(root)) for fd in (entry / "fd").iterdir())
                and b"qemu-nbd" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
    return found
