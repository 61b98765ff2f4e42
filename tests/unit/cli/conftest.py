# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyper.v1 import container_pb2 as pb
from hyperctl import main
from tests.fakes.daemon import serving_in_thread
from tests.fakes.daemon_state import FakeDaemon

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60


@dataclasses.dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def socket_path(tmp_path):
    return str(tmp_path / "hyperd.sock")


@pytest.fixture
def daemon(socket_path):
    fake = FakeDaemon()
    fake.add_image("alpine")
    with serving_in_thread(fake, socket_path):
        yield fake


@pytest.fixture
def hyper(socket_path, capfd, monkeypatch):
    """Run a command line in this process."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("HYPER_HOST", raising=False)

    def run(*args: str) -> Result:
        capfd.readouterr()
        status = main.run(["--host", f"unix://{socket_path}", *args])
        return Result(status, *capfd.readouterr())

    return run


@pytest.fixture
def environ(socket_path):
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}/cli:{ROOT}/proto",
        "HYPER_HOST": f"unix://{socket_path}",
        "TERM": "xterm",
        "COLUMNS": "100",
    }


@pytest.fixture
def with_environ(environ, monkeypatch):
    """What a program that the test starts by another's help gets."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def spawn(environ):
    """Start `hyper` as a program of its own; ended at the latest with the test."""
    with contextlib.ExitStack() as children:

        def start(*args, **options):
            argv = [sys.executable, "-m", "hyperctl.main", *args]
            child = subprocess.Popen(argv, **{"env": environ, **options})
            children.callback(_end, child)
            return child

        yield start


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    if child.poll() is None:
        child.kill()
    child.wait(DEADLINE_S)


@pytest.fixture
def web(daemon):
    spec = pb.ContainerSpec(
        name="web",
        image="docker.io/library/alpine:3",
        args=["sleep", "1000"],
        labels={"team": "a", "x.y": "1"},
    )
    container = daemon.add_container(spec)
    daemon.start_process(container)
    return container
