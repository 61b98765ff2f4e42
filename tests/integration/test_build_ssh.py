# SPDX-License-Identifier: Apache-2.0
"""`hyper build --ssh`: OpenSSH's ssh-add, in a step of a real build, speaks with a real ssh-agent of the user's."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, wait_until
from tests.integration.test_build import build, require_built
from tests.integration.test_build import daemon as daemon  # noqa: PLC0414 - a fixture
from tests.integration.test_build import host as host  # noqa: PLC0414 - a fixture

DOCKERFILE = """\
FROM test.local/base
COPY root /
COPY mine.pub /
RUN --mount=type=ssh ssh-add -l && ssh-add -T /mine.pub && echo it signed
RUN --mount=type=ssh ssh-add -D; ssh-add -l | grep -c mine
RUN --mount=type=ssh,id=file ssh-add -l
RUN echo "without: [$SSH_AUTH_SOCK]" && ! ssh-add -l
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """With the host's ssh-add and what it is linked with, and two keys, whose public half alone is sent."""
    program = shutil.which("ssh-add")
    assert program is not None
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    place = tmp_path / "project"
    for path in (program, *re.findall(r"(/\S+) \(", linked)):
        target = place / "root" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("mine", "file"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)]
        subprocess.run(key, check=True)
    shutil.copy(tmp_path / "mine.pub", place)
    (place / "Dockerfile").write_text(DOCKERFILE)
    return place


@pytest.fixture
def agent(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's, which has the first key."""
    place = tmp_path / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as child:
        try:
            wait_until(place.exists, "the agent listens")
            subprocess.run(["ssh-add", "-q", str(tmp_path / "mine")], check=True)
            yield place
        finally:
            child.terminate()


def listed() -> str:
    return subprocess.run(["ssh-add", "-l"], capture_output=True, text=True, check=True).stdout


def test_steps_list_keys_and_have_things_signed_and_do_no_more(
    host: Hyper, project: Path, agent: Path, tmp_path: Path
):
    before = listed()
    said = require_built(
        build(host, "--ssh", "default", "--ssh", f"file={tmp_path}/file", "-t", "signed", str(project)), host
    )
    assert before.strip() in said
    assert "it signed" in said
    assert "(ED25519)\n" in said
    assert re.search(r"file \(ED25519\)", said)
    assert "without: []" in said
    assert listed() == before  # `ssh-add -D` in a step has removed nothing


def test_a_step_that_needs_an_agent_that_is_not_given_says_so(host: Hyper, project: Path):
    (project / "Dockerfile").write_text("FROM test.local/base\nRUN --mount=type=ssh,required=true true\n")
    finished = build(host, str(project))
    assert finished.returncode == 1
    assert b"ssh" in finished.stderr
