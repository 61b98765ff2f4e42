# SPDX-License-Identifier: Apache-2.0
"""Git repositories for builds, made by the host's own git, and servers of them."""

import base64
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.harness import wait_until

PORT = 9418
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


class Repository:
    """``parent/name``, with files in it, and what a server of plain files needs."""

    def __init__(self, parent: Path, name: str) -> None:
        self.place = parent / name
        self.place.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        finished = subprocess.run(
            ["git", *arguments],
            cwd=self.place,
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            check=True,
        )
        return finished.stdout.strip()

    def commit(self, files: Mapping[str, str]) -> str:
        """Its hash."""
        for name, text in files.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "some")
        return self.publish()

    def add_submodule(self, path: str, url: str, commit: str) -> None:
        """Without fetching it: whoever serves it is not there yet. Goes into the next commit."""
        (self.place / ".gitmodules").write_text(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
        (self.place / path).mkdir(parents=True)
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        self.git("add", ".gitmodules")
        self.git("commit", "-q", "-m", "a part")
        self.publish()

    def publish(self) -> str:
        self.git("update-server-info")
        return self.git("rev-parse", "HEAD")


@contextlib.contextmanager
def git_daemon(parent: Path, address: str, *, inside: Sequence[str] = ()) -> Iterator[str]:
    """The repositories below ``parent``, at ``git://ADDRESS/NAME``. ``inside``: words before the command."""
    exec_path = subprocess.run(
        ["git", "--exec-path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    words = [
        f"{exec_path}/git-daemon",
        "--reuseaddr",
        "--export-all",
        f"--listen={address}",
        f"--base-path={parent}",
    ]
    with subprocess.Popen([*inside, *words], stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _answers(address) or server.poll() is not None, "git daemon listens")
            assert server.poll() is None, "git daemon ended"
            yield f"git://{address}"
        finally:
            server.terminate()


def _answers(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, PORT)) == 0


@contextlib.contextmanager
def plain_files(parent: Path, address: str, *, login: str = "") -> Iterator[str]:
    """The same as files over HTTP, which git calls a dumb server: at ``http://ADDRESS:PORT/NAME/.git``.

    ``login``: USER:PASSWORD without which it gives nothing.
    """
    handler = partial(_Files, login=login, directory=str(parent))
    with ThreadingHTTPServer((address, 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://{address}:{server.server_port}"
        finally:
            server.shutdown()
            serving.join(10)


class _Files(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, login: str, directory: str) -> None:
        self._expected = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
        super().__init__(*arguments, directory=directory)

    def do_GET(self) -> None:
        if self._expected is not None and self.headers["Authorization"] != self._expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name upstream
        """Nobody reads it."""
